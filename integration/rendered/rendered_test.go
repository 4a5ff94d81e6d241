package rendered

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBy(t *testing.T) {
	const tmpl = "# Of {{.A}}\n\n{{range .B}}- {{.}}\n{{end}}\nThe end.\n"
	require.NoError(t, By(tmpl, "# Of one\n\n- x\n- y\n\nThe end.\n"))
	require.NoError(t, By(tmpl, "# Of one\n\n\nThe end.\n"))
	require.ErrorContains(t, By(tmpl, "# Of one\n\n- x\n\nAn end.\n"), "lacks")
	require.ErrorContains(t, By(tmpl, "\nThe end.\n# Of one\n\n"), "lacks")
	require.ErrorContains(t, By(tmpl, "# Of one\n\n\nThe end.\nAnd more.\n"), "goes on")
	require.Error(t, By("{{", ""))
}
