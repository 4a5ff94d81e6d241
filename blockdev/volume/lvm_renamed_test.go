package volume

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLoggedUUID(t *testing.T) {
	const log = `22:29:43.205498 lvchange[391] activate/dev_manager.c:857  Getting device info for vg--a-disc [LVM-q3xV].
22:29:43.216696 lvchange[391] device_mapper/ioctl/libdm-iface.c:2081  dm create vg--a-disc LVM-q3xV [ noopencount flush readonly ]
22:29:43.213203 lvchange[391] activate/dev_manager.c:857  Getting device info for vg--a-disc-real [LVM-q3xV-real].
22:29:43.445364 lvchange[391] device_mapper/libdm-config.c:1013  log/level not found in config: defaulting to 0
`
	require.Equal(t, "LVM-q3xV", loggedUUID(log, "vg--a-disc"))
	for _, device := range []string{"a-disc", "vg--a-disc_rimage_0", "vg--a", ""} {
		require.Empty(t, loggedUUID(log, device), device)
	}
	require.Empty(t, loggedUUID("Getting device info for vg--a-disc [LVM-q3", "vg--a-disc"), "cut short")
}

func TestNamesOf(t *testing.T) {
	h := NewHost("test", Options{})
	for _, name := range []string{"vg/lv", "vg-a/l-v", "vg--b/lv--", "vg-/lv", "a.b_c+d/x"} {
		v, err := h.lvmVolume(Ref{LVM, name})
		require.NoError(t, err)
		vg, lv := namesOf(v.device())
		require.Equal(t, name, vg+"/"+lv)
	}
}

func TestAdoptWholeVolumesOnly(t *testing.T) {
	h := NewHost("test", Options{})
	ref := Ref{LVM, "vg/lv"}
	for _, uuid := range []string{"", "LVM-short", "CRYPT-" + "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"} {
		h.Adopt(ref, uuid)
		require.Empty(t, h.DeviceUUID(ref), uuid)
	}
}
