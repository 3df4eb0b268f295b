//go:build tools

// Package main pins what is built from this module.
package main

import (
	_ "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"
)
