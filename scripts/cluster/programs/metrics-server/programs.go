//go:build tools

// Package main pins what is built from this module.
package main

import (
	_ "sigs.k8s.io/metrics-server/cmd/metrics-server"
)
