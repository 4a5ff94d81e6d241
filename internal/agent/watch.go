package agent

import (
	"context"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// rescanEvery is the longest that a new socket goes unseen where the kernel gives
// no notice: a directory that didn't exist, a file system without inotify.
const rescanEvery = 15 * time.Second

// watcher finds the machines: every socket that matches a glob is one.
type watcher struct {
	a       *Agent
	notify  *fsnotify.Watcher
	watched map[string]bool // directories that notify watches
	clashes map[string]bool // sockets that were reported to share a name
}

func newWatcher(a *Agent) (*watcher, error) {
	n, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	return &watcher{a: a, notify: n, watched: make(map[string]bool), clashes: make(map[string]bool)}, nil
}

func (w *watcher) close() { w.notify.Close() }

// run looks after the set of machines until ctx ends, and starts each periodic
// look. One goroutine with two timers serves all machines, so that a host with a
// hundred idle ones hardly wakes up.
func (w *watcher) run(ctx context.Context) {
	rescan := time.NewTicker(rescanEvery)
	defer rescan.Stop()
	every := w.a.opts().Look
	look := time.NewTicker(every)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-w.notify.Events:
			if !ok {
				return
			}
			if e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) {
				delete(w.watched, e.Name) // a directory that comes back is watched anew
			}
			if e.Has(fsnotify.Create) || e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) {
				w.scan()
				w.kick(e.Name)
			}
		case err := <-w.notify.Errors:
			w.a.log.Warn("watching for monitor sockets", "error", err)
			w.scan()
		case <-w.a.rescan:
			w.scan()
			if o := w.a.opts(); o.Look != every {
				every = o.Look
				look.Reset(every)
			}
		case <-rescan.C:
			w.scan()
		case <-look.C:
			for _, v := range w.a.list() {
				v.lookSoon()
			}
		}
	}
}

// scan starts machines for sockets that have none yet, and returns those. A
// machine whose socket is gone finds that out by itself.
func (w *watcher) scan() (started []*vm) {
	found := make(map[string]string) // name to socket
	for _, glob := range w.a.opts().Monitors {
		w.watch(filepath.Dir(glob))
		paths, err := filepath.Glob(glob)
		if err != nil {
			continue // the configuration was checked
		}
		sort.Strings(paths)
		for _, path := range paths {
			if st, err := os.Stat(path); err != nil || st.Mode()&os.ModeSocket == 0 {
				continue
			}
			base := filepath.Base(path)
			name := strings.TrimSuffix(base, filepath.Ext(base))
			if other, taken := found[name]; taken && other != path {
				if !w.clashes[path] {
					w.clashes[path] = true
					w.a.log.Warn("two monitor sockets for one VM name: the first is used", "vm", name, "used", other, "left", path)
				}
				continue
			}
			found[name] = path
		}
	}
	w.watchMachines()
	for name, path := range w.a.machines.sockets() {
		if other := found[name]; other != "" && !w.clashes[other] {
			w.clashes[other] = true
			w.a.log.Warn("a monitor socket has the name of a machine of trayd's own: it is left", "vm", name, "left", other)
		}
		found[name] = path
	}
	for name, path := range found {
		if v := w.a.vm(name); v.launch(path) {
			started = append(started, v)
		}
	}
	// Machines that are known from their records only, and those whose socket no
	// longer matches any glob, are told so.
	w.a.mu.Lock()
	var orphans []*vm
	for name, v := range w.a.vms {
		if _, ok := found[name]; !ok {
			orphans = append(orphans, v)
		}
	}
	w.a.mu.Unlock()
	for _, v := range orphans {
		v.withoutSocket(w.matches(v.socket()))
	}
	return started
}

// watchMachines watches the directories that machines of trayd's own make their sockets in.
func (w *watcher) watchMachines() {
	o := w.a.opts().Machines
	if o.Runner == nil {
		return
	}
	w.watch(o.RunDir)
	dirs, _ := os.ReadDir(o.RunDir) // made later, maybe
	for _, d := range dirs {
		if d.IsDir() {
			w.watch(filepath.Join(o.RunDir, d.Name()))
		}
	}
}

// matches reports whether a socket of that path would be a machine's.
func (w *watcher) matches(path string) bool {
	if o := w.a.opts().Machines; o.Runner != nil && filepath.Dir(filepath.Dir(path)) == o.RunDir {
		return true
	}
	for _, glob := range w.a.opts().Monitors {
		if ok, err := filepath.Match(glob, path); err == nil && ok {
			return true
		}
	}
	return false
}

func (w *watcher) kick(path string) {
	for _, v := range w.a.all() { // also one that had ended, and now begins anew
		if v.socket() == path {
			v.kickNow()
		}
	}
}

// watch watches a glob's directory, or the nearest parent that exists.
func (w *watcher) watch(dir string) {
	for strings.ContainsAny(dir, "*?[") {
		dir = filepath.Dir(dir)
	}
	for !w.watched[dir] {
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			if err := w.notify.Add(dir); err == nil {
				w.watched[dir] = true
			}
			return
		}
		parent := filepath.Dir(dir)
		if parent == dir || parent == "." {
			return
		}
		dir = parent
	}
}
