// Writes the zTOC of a layer blob to standard output, as soci-snapshotter's own builder makes it.
package main

import (
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
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: ztoc [-span BYTES] [-algorithm NAME] BLOB >ZTOC")
		os.Exit(2)
	}
	if err := write(flag.Arg(0), *span, *algorithm); err != nil {
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
