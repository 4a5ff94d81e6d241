package volume

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestResumed(t *testing.T) {
	const log = `21:58:39.326054 lvchange[431] device_mapper/libdm-deptree.c:3095  Loading table for vg--a-disc (253:0).
21:58:39.898351 lvchange[438] device_mapper/libdm-deptree.c:1330  Resuming vg--a-disc_rmeta_0 (253:1).
21:58:40.105385 lvchange[438] device_mapper/libdm-deptree.c:1330  Resuming vg--a-disc (253:5).
21:58:40.615413 lvchange[438] commands/toolcontext.c:1893  Reloading config files
`
	number, ok := resumed(log, "vg--a-disc")
	require.True(t, ok)
	require.Equal(t, "253:5", number)
	for _, device := range []string{"a-disc", "vg--a-disc_rimage_0", "vg--a", ""} {
		_, ok := resumed(log, device)
		require.False(t, ok, device)
	}
	_, ok = resumed("Resuming vg--a-disc (253", "vg--a-disc")
	require.False(t, ok, "cut short")
}

func TestGroupOf(t *testing.T) {
	h := NewHost("test", Options{})
	for _, name := range []string{"vg/lv", "vg-a/l-v", "vg--b/lv--", "vg-/lv", "a.b_c+d/x"} {
		v, err := h.lvmVolume(Ref{LVM, name})
		require.NoError(t, err)
		require.Equal(t, v.vg, groupOf(v.device()), name)
	}
}
