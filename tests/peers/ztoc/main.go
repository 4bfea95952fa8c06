package main

import _ "github.com/awslabs/soci-snapshotter/ztoc"

func main() {}
