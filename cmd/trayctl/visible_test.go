package main

import (
	"bytes"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/wire"
)

// TestVisible: QEMU's words, which may be a guest's, reach the terminal as text.
func TestVisible(t *testing.T) {
	const words, clean = "died: \x1b]0;root#\x07\x1b[2J\u009b2Jbye", "died: ]0;root#[2J2Jbye"
	var out, errs bytes.Buffer
	c := &cli{stdout: &out, stderr: &errs}
	c.report(ranError{&wire.Problem{Detail: words, Next: words}})
	require.Equal(t, "trayctl: "+clean+"\nnext: "+clean+"\n", errs.String())
	errs.Reset()
	c.warn([]string{words})
	require.Equal(t, "trayctl: warning: "+clean+"\n", errs.String())
	require.NoError(t, c.print(nil, func(w io.Writer) { row(w, "vm", words) }))
	c.printEvent(`{"type": "vm-failed", "detail": "died: \u001b[2Jbye"}`)
	require.Contains(t, out.String(), clean)
	require.NotContains(t, out.String(), "\x1b")
}
