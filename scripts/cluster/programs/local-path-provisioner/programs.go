//go:build tools

// Package main pins what is built from this module.
package main

import (
	_ "github.com/rancher/local-path-provisioner"
)
