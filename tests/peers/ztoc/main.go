// Writes the zTOC of a layer blob to standard output, as soci-snapshotter's own builder makes it;
// or reads one, and tells as JSON what soci-snapshotter finds in it.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/awslabs/soci-snapshotter/ztoc"
	"github.com/awslabs/soci-snapshotter/ztoc/compression"
)

func main() {
	span := flag.Int64("span", 1<<22, "uncompressed bytes between checkpoints")
	algorithm := flag.String("algorithm", compression.Gzip, "gzip or uncompressed")
	read := flag.String("read", "", "a zTOC to read instead, of which every file is extracted from BLOB")
	every := flag.Int("every", 1, "extract only one of so many files")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: ztoc [-span BYTES] [-algorithm NAME] [-read ZTOC] BLOB")
		os.Exit(2)
	}
	var err error
	if *read != "" {
		err = tell(*read, flag.Arg(0), *every)
	} else {
		err = write(flag.Arg(0), *span, *algorithm)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ztoc:", err)
		os.Exit(1)
	}
}

func write(blob string, span int64, algorithm string) error {
	toc, err := ztoc.NewBuilder("imgvol test").BuildZtoc(blob, span, ztoc.WithCompression(algorithm))
	if err != nil {
		return err
	}
	reader, _, err := ztoc.Marshal(toc)
	if err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, reader)
	return err
}

// Text is bytes, which JSON has as base64: names need not be UTF-8.
type member struct {
	Name, Type, Linkname, Uname, Gname, Time []byte
	Offset, Size, Mode, Devmajor, Devminor   int64
	UID, GID                                 int
	Records                                  map[string][]byte
	// SHA-256 of what was extracted.
	Content string `json:",omitempty"`
}

type answer struct {
	Version, Algorithm string
	Blob, Tar          int64
	Digests            []string
	Checkpoints        string
	Members            []member
}

func tell(path, blob string, every int) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	toc, err := ztoc.Unmarshal(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	file, err := os.Open(blob)
	if err != nil {
		return err
	}
	defer file.Close()
	found := answer{
		Version: string(toc.Version), Algorithm: toc.CompressionAlgorithm,
		Blob: int64(toc.CompressedArchiveSize), Tar: int64(toc.UncompressedArchiveSize),
		Checkpoints: hash(toc.Checkpoints),
	}
	for _, digest := range toc.SpanDigests {
		found.Digests = append(found.Digests, digest.String())
	}
	seen := map[string]bool{}
	for number, entry := range toc.FileMetadata {
		text, _ := entry.ModTime.UTC().MarshalText()
		one := member{
			Name: []byte(entry.Name), Type: []byte(entry.Type), Linkname: []byte(entry.Linkname),
			Uname: []byte(entry.Uname), Gname: []byte(entry.Gname), Time: text,
			Offset: int64(entry.UncompressedOffset), Size: int64(entry.UncompressedSize),
			Mode: entry.Mode, Devmajor: entry.Devmajor, Devminor: entry.Devminor,
			UID: entry.UID, GID: entry.GID, Records: map[string][]byte{},
		}
		for key, value := range entry.PAXHeaders {
			one.Records[key] = []byte(value)
		}
		if entry.Type == "reg" && !seen[entry.Name] && number%every == 0 {
			content, err := toc.ExtractFile(io.NewSectionReader(file, 0, found.Blob), entry.Name)
			if err != nil {
				return fmt.Errorf("%q: %w", entry.Name, err)
			}
			one.Content = hash(content)
		}
		seen[entry.Name] = true
		found.Members = append(found.Members, one)
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
