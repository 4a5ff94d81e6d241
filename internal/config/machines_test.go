package config

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/machine"
)

func TestEveryKeyOfMachinesIsTakenOver(t *testing.T) {
	c, problems := parse([]byte(`
[machines]
run = "process"
user = "vm"
qemu = "/opt/qemu/bin/qemu-system-x86_64"
qemu_img = "/opt/qemu/bin/qemu-img"
accel = "tcg"
stop_wait = "5m"
run_dir = "/run/m/"
[[flavour]]
name = "small"
memory = "2GiB"
cpus = 2
disk = "20GiB"
[[flavour]]
name = "diskless"
memory = "512MiB"
cpus = 1
`))
	require.Empty(t, problems)
	assert.Equal(t, Machines{
		Run: RunProcess, User: "vm", QEMU: "/opt/qemu/bin/qemu-system-x86_64", QemuImg: "/opt/qemu/bin/qemu-img",
		Accel: AccelTCG, StopWait: 5 * time.Minute, RunDir: "/run/m",
	}, c.Machines)
	assert.Equal(t, []machine.Flavour{
		{Name: "small", Memory: 2 << 30, CPUs: 2, Disk: 20 << 30},
		{Name: "diskless", Memory: 512 << 20, CPUs: 1},
	}, c.Flavours)
}

func TestMistakesOfMachines(t *testing.T) {
	for _, row := range []struct {
		text string
		line int
		key  string
		says string
	}{
		{"[machines]\nrun = 'docker'", 2, "machines.run", "none of"},
		{"[machines]\nuser = ''", 2, "machines.user", "can't be a user's name"},
		{"[machines]\nqemu = 'bin/qemu'", 2, "machines.qemu", "neither"},
		{"[machines]\nqemu_img = ''", 2, "machines.qemu_img", "neither"},
		{"[machines]\naccel = 'xen'", 2, "machines.accel", "none of"},
		{"[machines]\nstop_wait = '-1s'", 2, "machines.stop_wait", "too short"},
		{"[machines]\nrun_dir = 'x'\nrun = 'process'", 2, "machines.run_dir", "not absolute"},
		{"[machines]\nrun_dir = '/x'", 2, "machines.run_dir", "needs run"},
		{"[machines]\nrun = 'process'\nrun_dir = '/a2345678901234567890123456789012345678901234567890123456789012345678901'", 3, "machines.run_dir", "room for a socket"},
		{"[[flavour]]\nname = 'a'\nmemory = '1GiB'", 1, "flavour[0].cpus", "not within"},
		{"[[flavour]]\nname = 'a'\ncpus = 1\nmemory = '1'", 4, "flavour[0].memory", "too small"},
		{"[[flavour]]\nname = 'a'\ncpus = 1\nmemory = '1G'\ndisk = 'x'", 5, "flavour[0].disk", "not a size"},
		{"[[flavour]]\ncpus = 1\nmemory = '1G'", 1, "flavour[0].name", "a name is needed"},
	} {
		t.Run(row.key+" "+row.says, func(t *testing.T) {
			_, problems := parse([]byte(row.text))
			require.Len(t, problems, 1)
			assert.Equal(t, row.line, problems[0].Line)
			assert.Equal(t, row.key, problems[0].Key)
			assert.Contains(t, problems[0].Detail, row.says)
		})
	}
}
