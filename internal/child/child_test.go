package child

import (
	"errors"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestOutput: a program may say as much as it likes.
func TestOutput(t *testing.T) {
	out := &Output{Most: 8}
	cmd := exec.Command("printf", `abc\377defghijkl`)
	cmd.Stdout, cmd.Stderr = out, out
	require.NoError(t, Run(cmd, cmd.Run))
	require.Equal(t, "abc?defg", out.String())
	require.True(t, out.More())
	out = &Output{Most: 4}
	cmd = exec.Command("printf", "abcd")
	cmd.Stdout = out
	require.NoError(t, Run(cmd, cmd.Run))
	require.Equal(t, "abcd", out.String())
	require.False(t, out.More())
}

// TestRunSaysWhatItsCallSays: nothing else is made of it.
func TestRunSaysWhatItsCallSays(t *testing.T) {
	mine := errors.New("mine")
	require.Equal(t, mine, Run(exec.Command("true"), func() error { return mine }))
}
