package main

import _ "github.com/containerd/stargz-snapshotter/estargz"

func main() {}
