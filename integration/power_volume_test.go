//go:build integration

package integration_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/edge"
)

// TestPowerLossWithVolumes cuts the power of a host in the middle of changes between
// logical volumes, once with an image that is being added. The records outlive it and
// speak of machines that are no more: whatever they have is released, also what the host
// has activated by itself as it booted.
func TestPowerLossWithVolumes(t *testing.T) {
	h := edge.Start(t)
	s := service{t, edgeHost{h}}
	t.Cleanup(func() {
		if t.Failed() {
			journal, _ := s.try("journalctl", "--no-pager", "-o", "short-monotonic", "-u", "trayd*")
			t.Logf("journal of trayd:\n%s", journal)
		}
	})
	s.installTrayd()
	s.install(filepath.Join(bin, "trayd-failpoints"), "/usr/bin/trayd-failpoints", 0o755)
	s.write("/etc/trayd/trayd.toml", "[[pool]]\nname = \"fast\"\ntype = \"lvm\"\nvg = \"vg0\"\n", 0o644)
	s.run("systemctl", "enable", "trayd.socket", "trayd.service")
	s.run("vgcreate", "--yes", "vg0", edge.Disks[0])
	for _, name := range []string{"ONE", "TWO"} { // not by the boot: that would be somebody else's doing
		s.run("lvcreate", "--yes", "--setautoactivation", "n", "--size", "4m", "--name", name, "vg0")
		s.run("dd", "if=/srv/iso/"+name+".iso", "of=/dev/vg0/"+name, "conv=fsync", "status=none")
	}
	s.run("vgchange", "--activate", "n", "vg0")
	s.run("sync")
	s.run("systemctl", "start", "trayd.socket")

	active := func() string {
		return s.run("lvs", "--noheadings", "--options", "lv_name", "--select", "lv_active=active", "vg0")
	}
	for _, point := range []string{"volume-activated", "swapped"} {
		t.Run(point, func(t *testing.T) {
			s := s.in(t)
			s.machine("vm1", "-device", "ide-cd,id=cd0")
			s.soon("the machine isn't found", func() bool { return len(s.serves()) == 1 })
			s.run("trayctl", "insert", "vm1", "lvm:vg0/ONE")
			s.write("/run/systemd/system/trayd.service.d/failpoint.conf", "[Service]\nExecStart=\nExecStart=/usr/bin/trayd-failpoints\n"+
				"Environment=TRAYD_FAILPOINT="+point+"\nRestart=no\n", 0o644)
			s.run("systemctl", "daemon-reload")
			s.run("systemctl", "restart", "trayd")
			_, err := s.try("trayctl", "change", "vm1", "lvm:vg0/TWO")
			require.ErrorContains(t, err, "exit code 3")
			require.Equal(t, "ONE TWO", strings.Join(strings.Fields(active()), " "))
			if point == "swapped" { // an image, too, that is only half there
				s.run("systemctl", "stop", "trayd.socket")
				mark := s.run("sh", "-c", `grep -o '"agent/mark","value":"[a-z2-7]*"' /var/lib/trayd/state.journal | tail -1 | cut -d'"' -f6`)
				s.run("lvcreate", "--yes", "--setautoactivation", "n", "--addtag", "trayd.incomplete."+strings.TrimSpace(mark), "--size", "8m", "--name", "half", "vg0")
			}
			h.PowerCycle()
			s.soon("volumes of machines that are no more", func() bool { return strings.TrimSpace(active()) == "" })
			s.soon("records of machines that are no more", func() bool { return strings.TrimSpace(s.run("trayctl", "-o", "json", "state", "show")) == "[]" })
			s.soon("half an image", func() bool { return !strings.Contains(s.run("lvs", "vg0"), "half") })
			s.run("trayctl", "state", "check")
		})
	}
	s.machine("vm1", "-device", "ide-cd,id=cd0")
	s.soon("the machine isn't found", func() bool { return len(s.serves()) == 1 })
	s.run("trayctl", "insert", "vm1", "lvm:vg0/TWO")
	require.Equal(t, "TWO", s.drive("vm1/cd0").Medium.VolumeID)
}
