package disk

import (
	"bytes"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestBeneath: a disk leads to what its machine's definition says, and nowhere else, whatever
// stands in its header.
func TestBeneath(t *testing.T) {
	w := newWorkshop(t)
	w.create("base", 8*mib, "")
	w.create("alone", 8*mib, "")
	w.create("linked", 8*mib, "", "-b", w.path("base"), "-F", "qcow2")
	// data_file makes its file, as a hostile QEMU needn't.
	w.create("elsewhere", 8*mib, "data_file="+w.path("data"))
	w.create("both", 8*mib, "data_file="+w.path("data"), "-b", w.path("base"), "-F", "qcow2")
	w.raw("raw", 8*mib, "")
	at := func(name string, what []byte) int64 {
		content, err := os.ReadFile(w.path(name))
		require.NoError(t, err)
		i := bytes.Index(content, what)
		require.Positive(t, i)
		return int64(i)
	}
	// The extension with the format: kind, length, name.
	format := at("linked", []byte{0xe2, 0x79, 0x2a, 0xca}) + 8
	w.patch("linked", "as-vmdk", format, []byte("vmdk\x00")...)
	w.patch("as-vmdk", "as-vmdk", format-4, u32(4)...)

	base := Base{w.path("base"), QCOW2}
	for _, c := range []struct {
		name   string
		on     Base
		reason Reason
		detail string
	}{
		{name: "alone"},
		{name: "linked", on: base},
		{name: "linked", on: Base{Path: base.Path}},
		{name: "linked", reason: BackingFile, detail: `and the machine's definition says ""`},
		{name: "alone", on: base, reason: BackingFile, detail: `it says that it stands on ""`},
		{name: "linked", on: Base{base.Path, Raw}, reason: BackingFile, detail: `is "qcow2", and the machine's definition says "raw"`},
		{name: "as-vmdk", on: base, reason: BackingFile, detail: `is "vmdk"`},
		{name: "elsewhere", reason: ExternalData, detail: "data"},
		{name: "both", on: base, reason: ExternalData, detail: "its data is in another file"},
		{name: "raw", reason: NotADisk},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Beneath(w.path(c.name), c.on)
			if c.reason == "" {
				require.NoError(t, err)
				return
			}
			var e *Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, c.reason, e.Reason, "%v", err)
			require.Contains(t, e.Detail, c.detail)
			require.NotEmpty(t, e.Next)
		})
	}
	require.ErrorIs(t, Beneath(w.path("none"), Base{}), os.ErrNotExist)
}
