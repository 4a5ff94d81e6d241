package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/internal/machine/launch"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/qmp"
)

func host(t *testing.T) *Host {
	t.Helper()
	h, err := FindHost("qemu-system-x86_64", "tcg")
	require.NoError(t, err)
	return h
}

// started makes a machine's files, starts its very command, and returns its monitor.
func started(t *testing.T, d *Definition) *qmp.Conn {
	t.Helper()
	h, dir := host(t), t.TempDir()
	run, err := os.MkdirTemp("", "m") // a socket's path is short
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(run) })
	for _, k := range d.Disks {
		require.NoError(t, Images{"qemu-img"}.Blank(context.Background(), dir, k))
	}
	if d.Firmware == wire.FirmwareUEFI {
		fw, err := h.UEFI(d.Machine)
		require.NoError(t, err)
		require.NoError(t, NewVars(fw, filepath.Join(dir, VarsFile)))
	}
	c, err := Build(d, h, dir, run)
	require.NoError(t, err)
	cmd := exec.Command(c.Path, c.Args...)
	var words strings.Builder
	cmd.Stderr = &words
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for _, f := range c.Files {
		flags := map[launch.FileMode]int{launch.Read: os.O_RDONLY, launch.ReadWrite: os.O_RDWR, launch.Append: os.O_WRONLY | os.O_APPEND | os.O_CREATE}[f.Mode]
		file, err := os.OpenFile(f.Path, flags, 0o600)
		require.NoError(t, err)
		defer file.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	path := filepath.Join(run, MonitorSocket)
	for range 500 {
		if conn, err := qmp.Dial(context.Background(), path, &qmp.Options{Timeout: 5 * time.Second}); err == nil {
			t.Cleanup(func() { conn.Close() })
			for _, name := range []string{OperatorSocket, PowerSocket} { // each serves somebody else at the same time
				other, err := qmp.Dial(context.Background(), filepath.Join(run, name), &qmp.Options{Timeout: 5 * time.Second})
				require.NoError(t, err)
				other.Close()
			}
			for _, name := range []string{VNCSocket, SerialSocket, AgentSocket} {
				c, err := net.Dial("unix", filepath.Join(run, name))
				require.NoError(t, err, name)
				c.Close()
			}
			return conn
		}
		time.Sleep(20 * time.Millisecond)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	t.Fatalf("QEMU doesn't answer: %s", words.String())
	return nil
}

// TestQEMUTakesIt: a real QEMU takes the command line of every kind of machine, shows the
// drives empty on the buses that they are meant to be on, with the boot order of the
// definition, and has not run.
func TestQEMUTakesIt(t *testing.T) {
	for _, typ := range []string{wire.MachineQ35, wire.MachinePC} {
		for _, firmware := range []string{wire.FirmwareBIOS, wire.FirmwareUEFI} {
			t.Run(typ+" "+firmware, func(t *testing.T) {
				d := &Definition{Name: "m", Machine: typ, Firmware: firmware, CPUs: 2, Memory: 256 << 20, VNC: true, Serial: true, GuestAgent: true}
				buses := []string{wire.BusSATA, wire.BusSCSI, wire.BusUSB}
				if typ == wire.MachinePC {
					buses = append(buses, wire.BusIDE)
				}
				for _, bus := range buses {
					d.CDROMs = append(d.CDROMs, wire.CDROM{Bus: bus}, wire.CDROM{Bus: bus})
					if bus != wire.BusUSB {
						d.Disks = append(d.Disks, wire.Disk{Bus: bus})
					}
				}
				d.Disks = append(d.Disks, wire.Disk{Bus: wire.BusVirtio})
				for _, model := range []string{"virtio", "e1000", "rtl8139"} {
					d.Networks = append(d.Networks, wire.Network{Model: model})
				}
				complete(t, d)
				require.NoError(t, Check(d))
				conn := started(t, d)
				ctx := context.Background()
				st, err := conn.QueryStatus(ctx)
				require.NoError(t, err)
				require.Equal(t, "prelaunch", st.Status)

				states, err := blockdev.ObserveAll(ctx, conn)
				require.NoError(t, err)
				drives := make(map[string]blockdev.Drive)
				for _, s := range states {
					info, isCD, err := blockdev.Identify(ctx, conn, s)
					require.NoError(t, err)
					if isCD {
						require.Nil(t, s.Medium)
						drives[info.Name] = info
					}
				}
				require.Len(t, drives, len(d.CDROMs))
				for _, c := range d.CDROMs {
					require.Equal(t, c.Bus, string(drives[c.Name].Bus), c.Name)
					require.Empty(t, drives[c.Name].Fixed, "it can be changed live")
				}
				for i, name := range BootOrder(d) {
					var index int
					require.NoError(t, conn.Execute(ctx, "qom-get", map[string]any{"path": "/machine/peripheral/" + name, "property": "bootindex"}, &index))
					require.Equal(t, i+1, index, name)
				}
			})
		}
	}
}

// TestLeast: QEMU may start no program, gets no device that isn't asked for, no file by a
// name, and never looks at the name that a disk's header has for its base.
func TestLeast(t *testing.T) {
	d := complete(t, &Definition{
		Name: "m", Disks: []wire.Disk{{}, {Image: "i", Linked: true, Base: "/pool/golden.qcow2", BaseFormat: "qcow2"}},
		Networks: []wire.Network{{Type: wire.NetworkBridge, Bridge: "br0"}},
	})
	c, err := Build(d, host(t), "/var/lib/trayd/machines/m", "/run/m,x")
	require.NoError(t, err)
	line := strings.Join(c.Args, " ")
	for _, part := range []string{"-nodefaults", "-no-user-config", "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", "path=/run/m,,x/qmp"} {
		require.Contains(t, line, part)
	}
	require.NotContains(t, line, "/var/lib/trayd")
	require.NotContains(t, line, "golden.qcow2")
	require.Equal(t, []launch.File{
		{Path: "/var/lib/trayd/machines/m/disk0.qcow2", Mode: launch.ReadWrite},
		{Path: "/var/lib/trayd/machines/m/disk1.qcow2", Mode: launch.ReadWrite},
		{Path: "/pool/golden.qcow2", Mode: launch.Read},
	}, c.Files)
	require.Contains(t, line, fmt.Sprintf("tap,id=net0,fd=%d", c.TapFD(0)))
	var nodes []map[string]any
	for i, a := range c.Args {
		if a == "-blockdev" {
			var n map[string]any
			require.NoError(t, json.Unmarshal([]byte(c.Args[i+1]), &n))
			nodes = append(nodes, n)
		}
	}
	require.Contains(t, nodes[0], "backing")
	require.Nil(t, nodes[0]["backing"], "a disk that stands alone has no base, whatever its header says")
	require.Equal(t, true, nodes[1]["backing"].(map[string]any)["read-only"])
	require.NotContains(t, line, "VGA")
}

// TestFirmware: the descriptions of QEMU's interoperation are followed: without Secure Boot,
// by name, a later directory's hidden by an earlier one's.
func TestFirmware(t *testing.T) {
	h := host(t)
	for _, typ := range []string{wire.MachineQ35, wire.MachinePC} {
		fw, err := h.UEFI(typ)
		require.NoError(t, err)
		require.FileExists(t, fw.Code)
		require.FileExists(t, fw.Vars)
	}
	first, second := t.TempDir(), t.TempDir()
	code := filepath.Join(first, "code.fd")
	require.NoError(t, os.WriteFile(code, nil, 0o600))
	describe := func(dir, name, feature, file string) {
		text := fmt.Sprintf(`{"interface-types":["uefi"],"mapping":{"device":"flash","executable":{"filename":%q,"format":"raw"},"nvram-template":{"filename":%q,"format":"raw"}},
			"targets":[{"architecture":"x86_64","machines":["pc-q35-*"]}],"features":[%q]}`, file, code, feature)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	h = &Host{FirmwareDirs: []string{first, second}}
	describe(second, "10-secure.json", "secure-boot", code)
	describe(second, "20-gone.json", "x", "/no/such/file")
	_, err := h.UEFI(wire.MachineQ35)
	var none *NoFirmwareError
	require.ErrorAs(t, err, &none)
	require.Contains(t, none.Next(), "ovmf")
	describe(second, "30-good.json", "x", code)
	fw, err := h.UEFI(wire.MachineQ35)
	require.NoError(t, err)
	require.Equal(t, code, fw.Code)
	_, err = h.UEFI(wire.MachinePC)
	require.ErrorAs(t, err, &none, "it is for q35 alone")
	require.NoError(t, os.Symlink("/dev/null", filepath.Join(first, "30-good.json"))) // masks it
	_, err = h.UEFI(wire.MachineQ35)
	require.ErrorAs(t, err, &none)
}

func TestNoQEMU(t *testing.T) {
	_, err := FindHost("no-such-qemu", "auto")
	var none *NoQEMUError
	require.ErrorAs(t, err, &none)
	require.Contains(t, none.Next(), "qemu-system-x86")
}
