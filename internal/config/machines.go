package config

import (
	"fmt"
	"strings"
	"time"

	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/wire"
)

// Machines is how machines of trayd's own are run.
type Machines struct {
	Run      string // RunAuto, RunSystemd or RunProcess
	User     string // that QEMU runs as where root starts it; systemd has a user for each
	QEMU     string // a path, or a name that is looked for in PATH
	QemuImg  string
	Accel    string        // AccelAuto, AccelKVM or AccelTCG
	StopWait time.Duration // for a guest that was asked to power off
	RunDir   string        // of their sockets, a directory for each
}

// The words that the keys machines.run and machines.accel know.
const (
	RunAuto    = "auto"
	RunSystemd = "systemd"
	RunProcess = "process"

	AccelAuto = "auto"
	AccelKVM  = "kvm"
	AccelTCG  = "tcg"
)

// unitRunDir is RuntimeDirectory= of trayd-vm@.service.
const unitRunDir = "/run/trayd/machines"

// maxRunDir keeps the path of a machine's socket, RUN_DIR/NAME/operator, within sun_path.
const maxRunDir = maxSocketPath - 28 - len("//operator")

// maxStop is as of systemd, which waits at a host's shutdown no longer by itself.
const maxStop = 24 * time.Hour

type fileMachines struct {
	Run      string `toml:"run"`
	User     string `toml:"user"`
	QEMU     string `toml:"qemu"`
	QemuImg  string `toml:"qemu_img"`
	Accel    string `toml:"accel"`
	StopWait string `toml:"stop_wait"`
	RunDir   string `toml:"run_dir"`
}

type fileFlavour struct {
	Name   string `toml:"name"`
	Memory string `toml:"memory"`
	CPUs   int    `toml:"cpus"`
	Disk   string `toml:"disk"`
}

func defaultMachines() fileMachines {
	return fileMachines{
		Run: RunAuto, User: "trayd-vm", QEMU: "qemu-system-x86_64", QemuImg: "qemu-img",
		Accel: AccelAuto, StopWait: "90s", RunDir: unitRunDir,
	}
}

// machines checks the [machines] table.
func (k *checker) machines(f fileMachines) Machines {
	m := Machines{
		Run: k.word("machines.run", f.Run, RunAuto, RunSystemd, RunProcess), User: f.User,
		QEMU: k.program("machines.qemu", f.QEMU), QemuImg: k.program("machines.qemu_img", f.QemuImg),
		Accel:    k.word("machines.accel", f.Accel, AccelAuto, AccelKVM, AccelTCG),
		StopWait: k.duration("machines.stop_wait", f.StopWait, 0, maxStop),
		RunDir:   k.directory("machines.run_dir", f.RunDir),
	}
	if !groupName(f.User) || f.User == "" {
		k.refuse("machines.user", "%q can't be a user's name; name one of /etc/passwd", f.User)
	}
	if len(m.RunDir) > maxRunDir {
		k.refuse("machines.run_dir", "%q has %d bytes; at most %d leave room for a socket's path", f.RunDir, len(m.RunDir), maxRunDir)
	}
	if m.RunDir != unitRunDir && m.Run != RunProcess {
		k.refuse("machines.run_dir", "the units of systemd have %s; another place needs run = %q", unitRunDir, RunProcess)
	}
	return m
}

// program refuses what is neither an absolute path nor a name.
func (k *checker) program(key, name string) string {
	if name == "" || strings.Contains(name, "/") && !strings.HasPrefix(name, "/") || strings.ContainsRune(name, 0) {
		k.refuse(key, "%q is neither a program's name nor its absolute path", name)
	}
	return name
}

// flavours checks the [[flavour]] tables.
func (k *checker) flavours(list []fileFlavour) []machine.Flavour {
	var all []machine.Flavour
	seen := make(map[string]bool)
	for i, f := range list {
		at := fmt.Sprintf("flavour[%d].", i)
		k.unique(at, f.Name, seen)
		fl := machine.Flavour{Name: f.Name, CPUs: f.CPUs, Memory: wire.Size(k.size(at+"memory", f.Memory, 16<<20, 64<<40))}
		if f.CPUs < 1 || f.CPUs > 288 {
			k.refuse(at+"cpus", "%d is not within 1 and 288", f.CPUs)
		}
		if f.Disk != "" {
			fl.Disk = wire.Size(k.size(at+"disk", f.Disk, minSize, maxSize))
		}
		all = append(all, fl)
	}
	return all
}
