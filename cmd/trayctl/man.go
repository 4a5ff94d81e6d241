//go:build man

package main

import (
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// With the build tag man this program writes its manual pages into a directory, and nothing
// else: trayctl as it is shipped has nothing of what makes them. `make man` runs it.
func main() {
	c := &cli{stdout: os.Stdout, stderr: os.Stderr}
	root := c.command()
	root.Long += `

# EXIT STATUS

**0**
: done

**1**
: refused or failed; the drive is as it was

**2**
: wrong usage

**3**
: outcome unknown: QEMU has not answered, trayd ended in the middle, or nobody waited; trayd goes on

**4**
: trayd can't be reached

**5**
: done in the machine, but something is still to be cleaned up

# ENVIRONMENT

**TRAYD_SOCKET**
: --socket

**TRAYD_HOST**, **TRAYD_TOKEN_FILE**, **TRAYD_FINGERPRINT**, **TRAYD_CA_FILE**, **TRAYD_CERT_FILE**, **TRAYD_KEY_FILE**
: --host, --token-file, --fingerprint, --ca-file, --cert-file, --key-file

**TRAYD_TOKEN**
: a token itself, where there is no --token-file

# FILES

*/run/trayd/api.sock*
: trayd's API

`
	if err := writeManual(root, os.Args[1]); err != nil {
		_, _ = os.Stderr.WriteString("trayctl: " + err.Error() + "\n")
		os.Exit(1)
	}
}

func writeManual(root *cobra.Command, dir string) error {
	root.InitDefaultHelpFlag()
	disableDates(root)
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return err
	}
	date := time.Unix(seconds, 0).UTC()
	return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "trayd " + version, Manual: "trayd", Date: &date}, dir)
}

// disableDates leaves out the generator's line with the day on which it ran.
func disableDates(c *cobra.Command) {
	c.DisableAutoGenTag = true
	for _, sub := range c.Commands() {
		disableDates(sub)
	}
}
