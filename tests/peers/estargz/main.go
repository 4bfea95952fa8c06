// Converts a tar into a lazy layer with the reference implementation, for the tests to read.
//
//	estargz [flags] INPUT.tar OUTPUT
//
// Prints one JSON object: the annotations that the layer's descriptor needs, and its diff ID.
//
// Or reads an eStargz layer, and verifies every chunk against its table of contents:
//
//	estargz -verify TOCDIGEST LAYER
//
// Prints the SHA-256 of each regular file, by its path.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io"
	"log"
	"os"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/externaltoc"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

type report struct {
	Annotations map[string]string `json:"annotations"`
	DiffID      string            `json:"diff_id"`
}

func main() {
	log.SetFlags(0)
	format := flag.String("format", "gzip", "gzip, external or zstd")
	chunkSize := flag.Int("chunk-size", 0, "bytes of a chunk, 0 for the default")
	minChunkSize := flag.Int("min-chunk-size", 0, "bytes that files are packed into")
	prioritized := flag.String("prioritize", "", "names to put first, separated by commas")
	tocFile := flag.String("toc", "", "where to write an external table of contents, as its layer")
	lossless := flag.Bool("lossless", false, "keep the tar as it is: no landmarks, no order")
	verify := flag.String("verify", "", "digest of a table of contents: read a layer")
	flag.Parse()
	if *verify != "" && flag.NArg() == 1 {
		check(json.NewEncoder(os.Stdout).Encode(read(flag.Arg(0), *verify)))
		return
	}
	if flag.NArg() != 2 {
		log.Fatal("usage: estargz [flags] INPUT.tar OUTPUT")
	}
	annotations := map[string]string{}
	compression := compressionOf(*format, annotations)
	input, err := os.Open(flag.Arg(0))
	check(err)
	output, err := os.Create(flag.Arg(1))
	check(err)
	var done report
	if *lossless {
		writer := estargz.NewWriterWithCompressor(output, compression)
		writer.ChunkSize, writer.MinChunkSize = *chunkSize, *minChunkSize
		check(writer.AppendTarLossLess(input))
		digest, err := writer.Close()
		check(err)
		annotations[estargz.TOCJSONDigestAnnotation] = digest.String()
		done.DiffID = writer.DiffID()
	} else {
		options := []estargz.Option{
			estargz.WithCompression(compression),
			estargz.WithChunkSize(*chunkSize),
			estargz.WithMinChunkSize(*minChunkSize),
		}
		if *prioritized != "" {
			options = append(options, estargz.WithPrioritizedFiles(strings.Split(*prioritized, ",")))
		}
		info, err := input.Stat()
		check(err)
		blob, err := estargz.Build(io.NewSectionReader(input, 0, info.Size()), options...)
		check(err)
		_, err = io.Copy(output, blob)
		check(err)
		check(blob.Close())
		annotations[estargz.TOCJSONDigestAnnotation] = blob.TOCDigest().String()
		done.DiffID = blob.DiffID().String()
	}
	check(output.Close())
	if external, ok := compression.(*externaltoc.GzipCompression); ok && *tocFile != "" {
		toc, err := os.Create(*tocFile)
		check(err)
		_, err = external.WriteTOCTo(toc)
		check(err)
		check(toc.Close())
	}
	done.Annotations = annotations
	check(json.NewEncoder(os.Stdout).Encode(done))
}

// read returns the digest of each regular file, once all its chunks have been verified.
func read(name, tocDigest string) map[string]string {
	file, err := os.Open(name)
	check(err)
	info, err := file.Stat()
	check(err)
	reader, err := estargz.Open(io.NewSectionReader(file, 0, info.Size()))
	check(err)
	verifier, err := reader.VerifyTOC(digest.Digest(tocDigest))
	check(err)
	root, ok := reader.Lookup("")
	if !ok {
		log.Fatal("no root")
	}
	found := map[string]string{}
	var walk func(string, *estargz.TOCEntry)
	walk = func(path string, directory *estargz.TOCEntry) {
		directory.ForeachChild(func(base string, entry *estargz.TOCEntry) bool {
			child := strings.TrimPrefix(path+"/"+base, "/")
			switch entry.Type {
			case "dir":
				walk(child, entry)
			case "reg":
				found[child] = readFile(reader, verifier, entry)
			}
			return true
		})
	}
	walk("", root)
	return found
}

func readFile(reader *estargz.Reader, verifier estargz.TOCEntryVerifier, entry *estargz.TOCEntry) string {
	whole := sha256.New()
	for offset := int64(0); offset < entry.Size; {
		chunk, ok := reader.ChunkEntryForOffset(entry.Name, offset)
		if !ok {
			log.Fatalf("%s has no chunk at %d", entry.Name, offset)
		}
		checker, err := verifier.Verifier(chunk)
		check(err)
		content, err := reader.OpenFile(entry.Name)
		check(err)
		part := io.NewSectionReader(content, chunk.ChunkOffset, chunk.ChunkSize)
		_, err = io.Copy(io.MultiWriter(checker, whole), part)
		check(err)
		if !checker.Verified() {
			log.Fatalf("%s is not verified at %d", entry.Name, offset)
		}
		offset += chunk.ChunkSize
	}
	return hex.EncodeToString(whole.Sum(nil))
}

// zstdCompression is both halves of what the builder wants.
type zstdCompression struct {
	*zstdchunked.Decompressor
	*zstdchunked.Compressor
}

type gzipCompression struct {
	*estargz.GzipDecompressor
	*estargz.GzipCompressor
}

func compressionOf(format string, annotations map[string]string) estargz.Compression {
	switch format {
	case "gzip":
		return gzipCompression{new(estargz.GzipDecompressor), estargz.NewGzipCompressorWithLevel(6)}
	case "external":
		return externaltoc.NewGzipCompressionWithLevel(nil, 6)
	case "zstd":
		level := zstd.EncoderLevelFromZstd(3)
		compressor := &zstdchunked.Compressor{CompressionLevel: level, Metadata: annotations}
		return zstdCompression{new(zstdchunked.Decompressor), compressor}
	}
	log.Fatalf("unknown format %q", format)
	return nil
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
