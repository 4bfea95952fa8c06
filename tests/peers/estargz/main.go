// Converts a tar into a lazy layer with the reference implementation, for the tests to read.
//
//	estargz [flags] INPUT.tar OUTPUT
//
// Prints one JSON object: the annotations that the layer's descriptor needs, and its diff ID.
package main

import (
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
	flag.Parse()
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
