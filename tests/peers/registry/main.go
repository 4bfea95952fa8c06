// A registry that has the API for referrers, in memory: go-containerregistry's own.
//
// It prints its address, and ends when its standard input does.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	handler := registry.New(registry.WithReferrersSupport(true))
	go func() {
		log.Fatal(http.Serve(listener, handler))
	}()
	fmt.Println(listener.Addr())
	io.Copy(io.Discard, os.Stdin)
}
