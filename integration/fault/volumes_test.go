package fault

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestUnexplained: a volume that is active without its disc in the drive is left.
func TestUnexplained(t *testing.T) {
	for _, c := range []struct {
		active []string
		d      drive
		says   string
	}{
		{nil, drive{}, ""},
		{[]string{"fault-OLD"}, drive{volume: old, inserted: true}, ""},
		{[]string{"fault-GONE"}, drive{volume: fresh, inserted: true}, ""},
		{[]string{"faultfailing-FRESH"}, drive{volume: unread, inserted: true}, ""},
		{[]string{"fault-OLD"}, drive{volume: none, inserted: true, open: true}, ""},
		{[]string{"fault-OLD"}, drive{}, "active: fault-OLD"},
		{[]string{"fault-FRESH"}, drive{volume: old, inserted: true}, "active: fault-FRESH"},
		{[]string{"fault-OLD", "faultfailing-FRESH"}, drive{volume: old, inserted: true}, "active: fault-OLD, faultfailing-FRESH"},
		{nil, drive{volume: old, inserted: true}, "active: no volume"},
	} {
		require.Equal(t, c.says, unexplained(c.active, c.d), "%v, %s", c.active, c.d)
	}
}
