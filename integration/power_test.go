//go:build integration

package integration_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/edge"
)

// TestPowerCycle shows that a crash of the edge host is a loss of power: what was
// flushed is there afterwards, and what wasn't is not.
func TestPowerCycle(t *testing.T) {
	h := edge.Start(t)
	h.Must("mkfs.ext4", "-q", edge.Disks[0])
	h.Must("mount", edge.Disks[0], "/mnt")
	h.Must("sh", "-c", "echo flushed >/mnt/one && sync && echo lost >/mnt/two")
	h.PowerCycle()
	h.Must("mount", edge.Disks[0], "/mnt")
	require.Equal(t, "flushed\n", h.Must("cat", "/mnt/one"))
	_, err := h.Try("grep", "lost", "/mnt/two")
	require.Error(t, err)
}

// TestPowerLoss cuts the power of a host whose trayd has a disc in a machine. What
// trayd wrote down is whole when the host is back, and says nothing of machines that
// went with the power.
func TestPowerLoss(t *testing.T) {
	h := edge.Start(t)
	s := service{t, edgeHost{h}}
	s.installTrayd()
	s.run("systemctl", "enable", "trayd.socket", "trayd.service")
	s.run("sync") // the installation; what trayd keeps it has to flush itself
	s.run("systemctl", "start", "trayd.socket")
	s.machine("vm1", "-device", "ide-cd,id=cd0")
	s.run("trayctl", "insert", "vm1", "/srv/iso/ONE.iso")
	shown := s.run("trayctl", "state", "show")
	require.Contains(t, shown, "/srv/iso/ONE.iso")

	h.PowerCycle()
	assert.Equal(t, "active", s.property("ActiveState"), "it starts with the host")
	s.run("trayctl", "state", "check")
	require.Empty(t, s.serves())
	s.machine("vm1", "-device", "ide-cd,id=cd0")
	s.soon("the machine isn't found", func() bool { return len(s.serves()) == 1 })
	assert.Nil(t, s.drive("vm1/cd0").Medium)
	s.run("trayctl", "insert", "vm1", "/srv/iso/TWO.iso")
	assert.Equal(t, "TWO", s.drive("vm1/cd0").Medium.VolumeID)
}
