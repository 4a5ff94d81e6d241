package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
)

// daemon is a running trayd, as it is shipped.
type daemon struct {
	cmd    *exec.Cmd
	socket string
	ready  time.Duration // from start to READY=1
	client *http.Client
}

// startTrayd starts trayd on the machines in dir/run, and waits for READY=1 as systemd
// does.
func (b *bench) startTrayd(dir string) (*daemon, error) {
	d := &daemon{socket: filepath.Join(dir, "api.sock")}
	config := filepath.Join(dir, "trayd.toml")
	text := fmt.Sprintf("state_dir = %q\nmonitors = [%q]\nmedia_roots = [%q]\n[api]\nsocket = %q\n%s",
		filepath.Join(dir, "state"), filepath.Join(dir, "run/*.qmp"), b.dir, d.socket, b.extra)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	notify := filepath.Join(dir, "notify")
	_ = os.Remove(notify) // of an earlier start
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	log, err := os.Create(filepath.Join(dir, "trayd.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd = exec.Command(filepath.Join(b.bin, "trayd"), "--config", config)
	d.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	began := time.Now()
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	b.atEnd(d.stop)
	buf := make([]byte, 4096)
	for {
		if err := l.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			return nil, err
		}
		n, err := l.Read(buf)
		if err != nil {
			text, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("trayd %w: %s", errEnded, text)
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			break
		}
	}
	d.ready = time.Since(began)
	d.client = &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 100,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
		},
	}}
	return d, nil
}

func (d *daemon) stop() {
	if d.cmd.ProcessState == nil {
		_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = d.cmd.Wait()
	}
}

// change, insert and eject are each one request over the warm API connection.
func (d *daemon) change(vm, disc string) error { return d.request(vm, wire.Replace, disc) }
func (d *daemon) insert(vm, disc string) error { return d.request(vm, wire.Insert, disc) }
func (d *daemon) eject(vm string) error        { return d.request(vm, wire.Eject, "") }

func (d *daemon) request(vm, verb, disc string) error {
	body, err := json.Marshal(wire.ChangeRequest{Medium: disc})
	if err != nil {
		return err
	}
	resp, err := d.client.Post("http://trayd/v1/vms/"+vm+"/drives/cd0/"+verb, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return err
}

// machines starts n machines named prefix0, prefix1, … whose sockets lie in dir/run.
// more are further arguments; without any they are stopped.
func (b *bench) machines(dir, prefix string, n int, more ...string) error {
	if len(more) == 0 {
		more = []string{"-S"}
	}
	run := filepath.Join(dir, "run")
	if err := os.MkdirAll(run, 0o755); err != nil {
		return err
	}
	for i := range n {
		name := fmt.Sprintf("%s%d", prefix, i)
		cmd := exec.Command(qemutest.Binary(), append([]string{"-accel", "tcg", "-nodefaults", "-display", "none", "-m", "16", "-M", "q35",
			"-device", "ide-cd,id=cd0,bus=ide.0", "-qmp", "unix:" + filepath.Join(run, name+".qmp") + ",server=on,wait=off"}, more...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("%w (Debian: qemu-system-x86)", err)
		}
		b.atEnd(func() {
			_ = cmd.Process.Kill() // it may have ended
			_ = cmd.Wait()
		})
	}
	for i := range n {
		path := filepath.Join(run, fmt.Sprintf("%s%d.qmp", prefix, i))
		for end := time.Now().Add(60 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			c, err := net.Dial("unix", path)
			if err == nil {
				c.Close()
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("QEMU does not listen on %s: %w", path, err)
			}
		}
	}
	return nil
}
