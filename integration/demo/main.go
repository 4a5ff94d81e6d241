// Command demo shows, in about a minute and with a real guest, what trayd is for. It
// fails loudly when a step does not show what it should, and leaves nothing behind.
// `make demo` runs it.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/trayd/trayd/internal/guest"
)

func main() {
	d := &demo{}
	flag.StringVar(&d.bin, "bin", "bin", "directory of trayd, trayctl, trayd-failpoints and guestinit")
	flag.StringVar(&d.cache, "cache", ".cache", "directory of the guest's kernel")
	flag.Parse()
	if abs, err := filepath.Abs(d.bin); err == nil {
		d.bin = abs
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	err := d.run(ctx)
	err = errors.Join(err, d.cleanUp())
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: FAILED: %v\n", err)
		if log := d.log.String(); log != "" {
			fmt.Fprintf(os.Stderr, "\nwhat trayd wrote:\n%s", log)
		}
		os.Exit(1)
	}
	fmt.Printf("\nEverything showed what it should, in %s. Nothing is left behind.\n", time.Since(began).Round(time.Second))
}

type demo struct {
	bin, cache string
	dir        string // sockets, discs and state of this run
	kit        *guest.Kit
	guest      *guest.Machine
	agent      *exec.Cmd
	log        bytes.Buffer
}

const (
	// limit is how long a step may take on a busy machine under software emulation.
	limit = 60 * time.Second
	// fetchLimit is how long the guest's kernel may take over a slow line.
	fetchLimit = 30 * time.Minute
)

func (d *demo) run(ctx context.Context) error {
	if err := bounded(ctx, fetchLimit, d.fetch); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		d.prepare, d.boot, d.insert, d.change, d.broken, d.death, d.eject,
	} {
		if err := bounded(ctx, limit, step); err != nil {
			return err
		}
	}
	return nil
}

func bounded(ctx context.Context, limit time.Duration, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return step(ctx)
}

// fetch gets what the guest is made of; once, as a rule.
func (d *demo) fetch(ctx context.Context) (err error) {
	d.kit, err = guest.Prepare(ctx, d.cache, os.Stdout)
	return err
}

// title announces a step, with a line that explains it. On a terminal it leaves the
// reader some time.
func title(what, why string) {
	if term.IsTerminal(int(os.Stdout.Fd())) {
		time.Sleep(readingTime)
	}
	fmt.Printf("\n\x1b[1m== %s\x1b[0m\n   %s\n", what, why)
}

// readingTime is for a person to read a step before the next begins.
const readingTime = 5 * time.Second

func (d *demo) prepare(ctx context.Context) error {
	var err error
	if d.dir, err = os.MkdirTemp("", "trayd-demo-"); err != nil {
		return err
	}
	for _, sub := range []string{"discs", "run"} {
		if err := os.Mkdir(filepath.Join(d.dir, sub), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{"one": "I am the first disc", "two": "I am the second disc", "three": "you should never see this"} {
		if err := d.makeDisc(ctx, name, text); err != nil {
			return err
		}
	}
	// The third disc's download broke off in the middle.
	if err := os.Truncate(d.disc("three"), 200<<10); err != nil {
		return err
	}
	config := fmt.Sprintf("state_dir = %q\nmonitors = [%q]\nmedia_roots = [%q]\n[api]\nsocket = %q\n",
		filepath.Join(d.dir, "state"), filepath.Join(d.dir, "run/*.qmp"), filepath.Join(d.dir, "discs"), d.socket())
	return os.WriteFile(d.config(), []byte(config), 0o644)
}

func (d *demo) disc(name string) string { return filepath.Join(d.dir, "discs", name+".iso") }
func (d *demo) config() string          { return filepath.Join(d.dir, "trayd.toml") }
func (d *demo) socket() string          { return filepath.Join(d.dir, "api.sock") }

func (d *demo) makeDisc(ctx context.Context, name, text string) error {
	content := filepath.Join(d.dir, "content-"+name)
	if err := os.Mkdir(content, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(content, "readme.txt"), []byte(text+"\n"), 0o644); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "xorriso", "-as", "mkisofs", "-quiet", "-R", "-J", "-V", "DISC_"+strings.ToUpper(name),
		"-o", d.disc(name), content).CombinedOutput()
	if err != nil {
		return fmt.Errorf("xorriso: %w\n%s", err, out)
	}
	return nil
}

func (d *demo) boot(ctx context.Context) error {
	title("A real Linux guest boots, with an empty CD drive; trayd starts beside it",
		"Debian's kernel and one small program that mounts every disc and reads its readme. Its lines are indented.")
	initramfs := filepath.Join(d.dir, "initramfs")
	if err := d.kit.Initramfs(initramfs, filepath.Join(d.bin, "guestinit"), guest.CDModules); err != nil {
		return err
	}
	args := []string{"-device", "ide-cd,id=cd0,bus=ide.0", "-qmp", "unix:" + filepath.Join(d.dir, "run/demo.qmp") + ",server=on,wait=off"}
	show(append(d.kit.Command("qemu-system-x86_64", initramfs, args), "&")...)
	var err error
	if d.guest, err = d.kit.Boot("qemu-system-x86_64", initramfs, args, sayGuest); err != nil {
		return err
	}
	show("export", "TRAYD_SOCKET="+d.socket(), "PATH=$PATH:"+d.bin)
	if err := d.startAgent(ctx, "trayd"); err != nil {
		return err
	}
	if err := d.guest.Expect(ctx, 0, "sr0: empty"); err != nil {
		return err
	}
	return d.trayctl(ctx, 0, "empty", "drives")
}

// width is how many columns a command may take before it is wrapped.
const width = 100

// show shows a command as it would be typed; an option stays with its value.
func show(words ...string) {
	line := "$"
	for i, w := range words {
		if strings.Contains(w, " ") {
			w = "'" + w + "'"
		}
		value := i > 0 && strings.HasPrefix(words[i-1], "-") && !strings.HasPrefix(w, "-")
		next := ""
		if strings.HasPrefix(w, "-") && i+1 < len(words) {
			next = words[i+1]
		}
		if !value && len(line)+len(w)+len(next) > width {
			fmt.Println(line + " \\")
			line = "   "
		}
		line += " " + w
	}
	fmt.Println(line)
}

// sayGuest shows what the guest says, in another colour than the host's commands.
func sayGuest(line string) { fmt.Printf("\x1b[36m      %s\x1b[0m\n", line) }

func (d *demo) insert(ctx context.Context) error {
	title("A disc goes in while the guest runs",
		"trayd opens and inspects the file, writes down what it is about to do, and hands QEMU the open descriptor.")
	mark := d.guest.Mark()
	if err := d.trayctl(ctx, 0, "is in", "insert", "demo", "one.iso"); err != nil {
		return err
	}
	return d.guest.Expect(ctx, mark, "disc DISC_ONE says: I am the first disc")
}

func (d *demo) change(ctx context.Context) error {
	title("Another disc: the guest has the first one mounted, is asked, and lets go",
		"A mounted disc locks the door. QEMU opens the new disc first; only then is the guest asked, and waited for.")
	mark := d.guest.Mark()
	if err := d.trayctl(ctx, 0, "is in", "change", "demo", "two.iso"); err != nil {
		return err
	}
	if err := d.guest.Expect(ctx, mark, "the host asks for the disc"); err != nil {
		return err
	}
	return d.guest.Expect(ctx, mark, "disc DISC_TWO says: I am the second disc")
}

func (d *demo) broken(ctx context.Context) error {
	title("A third disc, whose download broke off: refused before anything moves",
		"The volume declares more bytes than the file has. The second disc stays in, and the guest goes on reading it.")
	if err := d.trayctl(ctx, 1, "truncated", "change", "demo", "three.iso"); err != nil {
		return err
	}
	return d.stillTwo(ctx)
}

func (d *demo) stillTwo(ctx context.Context) error {
	mark := d.guest.Mark()
	if err := d.guest.Tell("read"); err != nil {
		return err
	}
	return d.guest.Expect(ctx, mark, "read again: disc DISC_TWO says: I am the second disc")
}

func (d *demo) death(ctx context.Context) error {
	title("trayd is killed in the middle of a change",
		"kill -9, at a moment at which QEMU holds the new disc's descriptor and the old disc is still in.")
	if err := d.stopAgent(); err != nil {
		return err
	}
	if err := d.startAgent(ctx, "trayd-failpoints", "TRAYD_FAILPOINT=descriptor-passed"); err != nil {
		return err
	}
	if err := d.trayctl(ctx, 3, "", "change", "demo", "one.iso", "--force"); err != nil {
		return err
	}
	if err := d.agent.Wait(); err == nil {
		return errors.New("trayd was to be killed, and ended by itself")
	}
	d.agent = nil
	fmt.Println("trayd is dead. The guest doesn't notice:")
	if err := d.stillTwo(ctx); err != nil {
		return err
	}
	fmt.Println("trayd starts again, finds what it had begun, and puts it in order:")
	if err := d.startAgent(ctx, "trayd"); err != nil {
		return err
	}
	if err := d.trayctl(ctx, 0, "two.iso", "drives"); err != nil {
		return err
	}
	if err := d.trayctl(ctx, 0, "ok: ", "state", "check"); err != nil {
		return err
	}
	return d.stillTwo(ctx)
}

func (d *demo) eject(ctx context.Context) error {
	title("The disc comes out again",
		"The guest is asked once more; the drive ends up empty and closed.")
	mark := d.guest.Mark()
	if err := d.trayctl(ctx, 0, "is out", "eject", "demo"); err != nil {
		return err
	}
	if err := d.guest.Expect(ctx, mark, "sr0: empty"); err != nil {
		return err
	}
	return d.trayctl(ctx, 0, "empty", "drives")
}

// trayctl shows and runs a command, and checks its exit code and what it prints.
func (d *demo) trayctl(ctx context.Context, code int, want string, args ...string) error {
	show(append([]string{"trayctl"}, args...)...)
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "trayctl"), args...)
	cmd.Env = append(os.Environ(), "TRAYD_SOCKET="+d.socket())
	out, err := cmd.CombinedOutput()
	fmt.Print(string(out))
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		return fmt.Errorf("trayctl %s: exit code %d, not %d", strings.Join(args, " "), got, code)
	}
	if !strings.Contains(string(out), want) {
		return fmt.Errorf("trayctl %s: does not say %q", strings.Join(args, " "), want)
	}
	return nil
}

// startAgent starts trayd and waits until its API answers and has found the guest.
func (d *demo) startAgent(ctx context.Context, program string, env ...string) error {
	show(append(slices.Clone(env), program, "--config", d.config(), "&")...)
	cmd := exec.Command(filepath.Join(d.bin, program), "--config", d.config())
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &d.log, &d.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	d.agent = cmd
	for {
		probe := exec.CommandContext(ctx, filepath.Join(d.bin, "trayctl"), "--socket", d.socket(), "drives", "demo/cd0")
		out, err := probe.CombinedOutput()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("trayd does not answer: %s", out)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (d *demo) stopAgent() error {
	if d.agent == nil {
		return nil
	}
	if err := d.agent.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	err := d.agent.Wait()
	d.agent = nil
	return err
}

func (d *demo) cleanUp() error {
	err := d.stopAgent()
	if d.guest != nil {
		err = errors.Join(err, d.guest.Kill())
	}
	if d.dir != "" {
		err = errors.Join(err, os.RemoveAll(d.dir))
	}
	return err
}
