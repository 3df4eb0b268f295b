//go:build tools

// Package main pins what is built from this module.
package main

import (
	_ "helm.sh/helm/v3/cmd/helm"
)
