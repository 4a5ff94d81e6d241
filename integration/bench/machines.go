package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/qmp"
)

const (
	machineRounds = 15
	// diskData is what a golden image holds, in bytes; half of the disk.
	diskData = 512 << 20
	ownFleet = 50
)

// own measures machines that trayd itself runs.
func (b *bench) own(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "trayd-own-") // sockets' paths are short
	if err != nil {
		return err
	}
	b.atEnd(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // QEMU runs as somebody else
		return err
	}
	was := b.extra
	b.extra = fmt.Sprintf("[machines]\nrun = \"process\"\naccel = \"tcg\"\nrun_dir = %q\n", filepath.Join(dir, "m"))
	d, err := b.startTrayd(dir)
	b.extra = was
	if err != nil {
		return err
	}
	defer d.Stop()
	o := &ownBench{bench: b, d: d, dir: dir}
	for _, measure := range []func(context.Context) error{o.starts, o.images, o.memory} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return nil
}

type ownBench struct {
	*bench
	d   *daemon
	dir string
}

func (o *ownBench) machineDir(name string) string {
	return filepath.Join(o.dir, "state", "machines", name)
}

// ask is one request; out may be nil.
func (o *ownBench) ask(method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(method, "http://trayd/v1/"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := o.d.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	if err == nil && out != nil {
		err = json.Unmarshal(answer, out)
	}
	return err
}

func (o *ownBench) create(name string, d wire.Definition) error {
	d.Name, d.VNC, d.Serial, d.Memory = name, true, true, 64<<20
	return o.ask("POST", "vms", wire.MachineRequest{Definition: d}, nil)
}

func (o *ownBench) end(name string) error { return o.ask("POST", "vms/"+name+"/kill", nil, nil) }

// starts measures from the request to the guest's first instruction, beside the same command
// line started by hand, its answer that it runs waited for.
func (o *ownBench) starts(context.Context) error {
	if err := o.create("start", wire.Definition{Disks: []wire.Disk{{Size: 1 << 30}}, CDROMs: []wire.CDROM{{Medium: o.discs[0]}}}); err != nil {
		return err
	}
	var began wire.MachineStarted
	if err := o.ask("POST", "vms/start/start", nil, &began); err != nil {
		return err
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", began.PID))
	if err != nil {
		return err
	}
	if err := o.end("start"); err != nil {
		return err
	}
	by := bareQEMU(line, o.machineDir("start"), filepath.Join(o.dir, "bare"), o.discs[0])
	var ours, beside []time.Duration
	for i := range machineRounds {
		for turn := range 2 {
			if (i+turn)%2 == 0 {
				at := time.Now()
				if err := o.ask("POST", "vms/start/start", nil, &began); err != nil {
					return err
				}
				ours = append(ours, time.Since(at))
				if err := o.end("start"); err != nil {
					return err
				}
				continue
			}
			took, err := by()
			if err != nil {
				return err
			}
			beside = append(beside, took)
		}
	}
	slices.Sort(ours)
	slices.Sort(beside)
	o.add("start of a machine, with a disc", spread(ours), "the same QEMU by hand "+spread(beside),
		fmt.Sprintf("%s more", short(median(ours)-median(beside))), "50 ms more")
	return o.ask("DELETE", "vms/start", nil, nil)
}

// bareQEMU is how long the command line of a machine takes until QEMU says that it runs.
func bareQEMU(line []byte, machineDir, run, disc string) func() (time.Duration, error) {
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	var command []string
	old := ""
	for _, a := range args[1:] {
		if i := strings.Index(a, "path="); i >= 0 && strings.HasPrefix(a, "socket,") {
			path, _, _ := strings.Cut(a[i+len("path="):], ",")
			old = filepath.Dir(path)
		}
		if a != "-S" {
			command = append(command, a)
		}
	}
	for i, a := range command {
		command[i] = strings.ReplaceAll(a, old, run)
		if strings.HasPrefix(a, "ide-cd,") { // its disc from the beginning
			command[i] += ",drive=disc"
		}
	}
	command = append([]string{"-blockdev", "driver=raw,node-name=disc,read-only=on,file.driver=file,file.filename=" + disc}, command...)
	return func() (time.Duration, error) {
		if err := errors.Join(os.RemoveAll(run), os.Mkdir(run, 0o755)); err != nil {
			return 0, err
		}
		began := time.Now()
		log, err := os.OpenFile(filepath.Join(machineDir, "serial.log"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return 0, err
		}
		defer log.Close()
		disk, err := os.OpenFile(filepath.Join(machineDir, "disk0.qcow2"), os.O_RDWR, 0)
		if err != nil {
			return 0, err
		}
		defer disk.Close()
		cmd := exec.Command(args[0], command...)
		cmd.ExtraFiles = []*os.File{log, disk}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		var words bytes.Buffer
		cmd.Stderr = &words
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
		for end := began.Add(20 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
			conn, err := qmp.Dial(context.Background(), filepath.Join(run, "qmp"), &qmp.Options{Timeout: 5 * time.Second})
			if err != nil {
				continue
			}
			st, err := conn.QueryStatus(context.Background())
			took := time.Since(began)
			conn.Close()
			if err == nil && !st.Running {
				err = fmt.Errorf("it is %s", st.Status)
			}
			return took, err
		}
		return 0, fmt.Errorf("QEMU doesn't answer: %s", words.String())
	}
}

// images measures golden images: captured, and machines made from them.
func (o *ownBench) images(ctx context.Context) error {
	if err := o.create("gold", wire.Definition{Disks: []wire.Disk{{Size: 2 * diskData}}}); err != nil {
		return err
	}
	disk := filepath.Join(o.machineDir("gold"), "disk0.qcow2")
	if err := fill(disk, o.dir); err != nil {
		return err
	}
	for _, how := range []struct {
		name     string
		compress bool
		options  []string
	}{{"plain", false, nil}, {"zstd", true, []string{"-c", "-o", "compression_type=zstd"}}} {
		n := 0
		ours, beside, err := interleave(5, func(int) error {
			n++
			return o.capture("gold", fmt.Sprintf("%s%d", how.name, n), how.compress)
		}, func(int) error {
			to := filepath.Join(o.dir, "beside.qcow2")
			err := run("qemu-img", append(append([]string{"convert", "-f", "qcow2", "-O", "qcow2"}, how.options...), disk, to)...)
			return errors.Join(err, run("sync", to), os.Remove(to))
		})
		if err != nil {
			return err
		}
		o.add("capture of 512 MiB, "+how.name, spread(ours), "qemu-img convert, sync "+spread(beside), ratio(ours, beside), "1.1x")
	}
	image := filepath.Join(o.dir, "golden.qcow2")
	if err := run("qemu-img", "convert", "-O", "qcow2", disk, image); err != nil {
		return err
	}
	n := 0
	copied, cp, err := interleave(5, func(int) error {
		n++
		return o.create(fmt.Sprintf("copy%d", n), wire.Definition{Disks: []wire.Disk{{Image: "image:plain1"}}})
	}, func(int) error {
		to := filepath.Join(o.dir, "beside.qcow2")
		return errors.Join(run("cp", "--sparse=always", image, to), run("sync", to), os.Remove(to))
	})
	if err != nil {
		return err
	}
	o.add("a machine from a golden image, copied", spread(copied), "cp --sparse, sync "+spread(cp), ratio(copied, cp), "1.1x")
	var linked []time.Duration
	for i := range machineRounds {
		at := time.Now()
		if err := o.create(fmt.Sprintf("linked%d", i), wire.Definition{Disks: []wire.Disk{{Image: "image:plain1", Linked: true}}}); err != nil {
			return err
		}
		linked = append(linked, time.Since(at))
	}
	slices.Sort(linked)
	o.add("a machine from a golden image, linked", spread(linked), "-", "-", "15 ms")
	return nil
}

// fill writes into a disk what an installation does: programs, of this host.
func fill(disk, dir string) error {
	raw := filepath.Join(dir, "raw")
	defer os.Remove(raw)
	if err := run("sh", "-c", fmt.Sprintf("tar -C / -cf - usr 2>/dev/null | head -c %d > %s", diskData, raw)); err != nil {
		return err
	}
	if err := run("truncate", "-s", fmt.Sprint(2*diskData), raw); err != nil {
		return err
	}
	return run("qemu-img", "convert", "-n", "-O", "qcow2", raw, disk)
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

func (o *ownBench) capture(vm, name string, compress bool) error {
	var i wire.Image
	if err := o.ask("POST", "vms/"+vm+"/capture", wire.CaptureRequest{Name: name, Compress: compress}, &i); err != nil {
		return err
	}
	for i.State != wire.ImageReady {
		if i.State == wire.ImageFailed {
			return errors.New(i.Failure.Cause)
		}
		if err := o.ask("GET", "pools/-/images/"+name+"?wait=10s", nil, &i); err != nil {
			return err
		}
	}
	return nil
}

// memory measures trayd with a fleet of machines of its own.
func (o *ownBench) memory(context.Context) error {
	for i := range ownFleet {
		name := fmt.Sprintf("fleet%d", i)
		d := wire.Definition{CDROMs: []wire.CDROM{{Medium: o.discs[0]}}}
		if err := o.create(name, d); err != nil {
			return err
		}
		if err := o.ask("POST", "vms/"+name+"/start", nil, nil); err != nil {
			return err
		}
	}
	defer func() {
		for i := range ownFleet {
			_ = o.end(fmt.Sprintf("fleet%d", i))
		}
	}()
	u, err := peer.UsageOf(o.d.PID())
	if err != nil {
		return err
	}
	o.add("resident memory with 50 machines of its own", fmt.Sprintf("%.1f MiB", u.Resident), "-", "-", "24 MiB")
	return nil
}
