package rendered

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBy(t *testing.T) {
	const tmpl = "# Of {{.A}}\n\n{{range .B}}- {{.}}\n{{end}}\nThe end.\n"
	require.NoError(t, By(tmpl, "# Of one\n\n- x\n- y\n\nThe end.\n"))
	require.NoError(t, By(tmpl, "# Of one\n\n\nThe end.\n"))
	require.ErrorContains(t, By(tmpl, "# Of one\n\n- x\n\nAn end.\n"), "doesn't end with")
	require.ErrorContains(t, By(tmpl, "# By one\n\n- x\n\nThe end.\n"), "lacks")
	require.ErrorContains(t, By("{{.A}} one {{.B}} two {{.C}}", "- two - one -"), "lacks")
	require.ErrorContains(t, By(tmpl, "# Of one\n\n\nThe end.\nAnd more.\n"), "doesn't end with")
	require.NoError(t, By("{{range .B}}- {{.}}\n{{end}}\n", "- x\n- y\n\n"))
	require.Error(t, By("{{", ""))
}
