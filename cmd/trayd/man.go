//go:build man

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/trayd/trayd/internal/config"
)

// With the build tag man this program writes its manual pages into a directory, and nothing
// else: trayd as it is shipped has nothing of what makes them. `make man` runs it.
func main() {
	c := &cli{stdout: os.Stdout, stderr: os.Stderr}
	root := c.command()
	root.Long += `

# FILES

*/etc/trayd/trayd.toml*
: the configuration, see **trayd.toml(5)**

*/var/lib/trayd/state.journal*
: the state file: what trayd owns, and what it was about to do

*/run/trayd/api.sock*
: the API's socket

*/var/log/trayd/audit.log*
: who has changed what

# SIGNALS

**SIGTERM**, **SIGINT**
: end; no machine is changed by that

**SIGHUP**
: read the configuration anew

`
	if err := writeManual(root, os.Args[1]); err != nil {
		_, _ = os.Stderr.WriteString("trayd: " + err.Error() + "\n")
		os.Exit(1)
	}
}

func writeManual(root *cobra.Command, dir string) error {
	disableDates(root)
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return err
	}
	date := time.Unix(seconds, 0).UTC()
	header := &doc.GenManHeader{Section: "8", Source: "trayd " + version, Manual: "trayd", Date: &date}
	if err := doc.GenManTree(root, header, dir); err != nil {
		return err
	}
	page := fmt.Sprintf(".TH \"TRAYD.TOML\" \"5\" \"%s\" \"trayd %s\" \"trayd\"\n.SH NAME\ntrayd.toml \\- configuration of trayd\n.SH SYNOPSIS\n.I /etc/trayd/trayd.toml\n"+
		".SH DESCRIPTION\nWithout the file the values below hold. \\fBtrayd --check-config\\fP says whether a changed file is right, \\fBsystemctl reload trayd\\fP takes it over.\n.PP\n.nf\n%s.fi\n.SH SEE ALSO\n.BR trayd (8)\n",
		date.Format("Jan 2006"), version, roff(config.Reference()))
	return os.WriteFile(filepath.Join(dir, "trayd.toml.5"), []byte(page), 0o644)
}

// roff is a text as it is, in what man reads.
func roff(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		line = strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", `\(ga`, "'", `\(aq`).Replace(line)
		if strings.HasPrefix(line, ".") {
			b.WriteString(`\&`)
		}
		b.WriteString(line)
	}
	return b.String()
}

// disableDates leaves out the generator's line with the day on which it ran.
func disableDates(c *cobra.Command) {
	c.DisableAutoGenTag = true
	for _, sub := range c.Commands() {
		disableDates(sub)
	}
}
