//go:build !failpoints

package main

// failPoint is nil but in builds for tests, see failpoint.go.
func failPoint() func(string) { return nil }
