package main

import (
	"maps"
	"slices"
	"time"

	"github.com/trayd/trayd/internal/config"
)

// reload takes the configuration over that the file has now. A file that isn't right
// changes nothing.
func (d *daemon) reload() {
	began := time.Now()
	log := d.log.With("audit", true, "by", "SIGHUP", "verb", "reload")
	d.tell(d.notifier.Reloading())
	next, err := config.Load(d.path)
	if err != nil {
		log.Warn("failed", "error", err, "took", time.Since(began))
		d.log.Error("the new configuration is refused; the old one stays in effect", "error", err)
		d.tell(d.notifier.Ready("the new configuration is refused, see the log; the old one stays in effect"))
		return
	}
	for _, key := range needRestart(d.config, next) {
		d.log.Warn("a changed setting takes effect when trayd is restarted", "key", key)
	}
	next.StateDir, next.API = d.config.StateDir, d.config.API
	next.Machines.Run, next.Machines.RunDir = d.config.Machines.Run, d.config.Machines.RunDir
	d.config = next
	d.latest.Store(next)
	d.level.Set(next.Log.Level)
	d.agent.Reload(d.agentOptions(next))
	d.outlets.configure(next)
	log.Info("done", "took", time.Since(began))
	d.log.Info("the new configuration is in effect")
	d.tell(d.notifier.Ready(d.attached()))
}

// needRestart names the keys whose new values can't be taken over by a running trayd.
func needRestart(old, next *config.Config) []string {
	var keys []string
	if old.StateDir != next.StateDir {
		keys = append(keys, "state_dir")
	}
	if old.API.Socket != next.API.Socket {
		keys = append(keys, "api.socket")
	}
	if old.API.Group != next.API.Group || old.API.ViewGroup != next.API.ViewGroup {
		keys = append(keys, "api.group")
	}
	if !slices.Equal(old.API.Listen, next.API.Listen) || !slices.Equal(old.API.Names, next.API.Names) {
		keys = append(keys, "api.listen")
	}
	if old.API.CertFile != next.API.CertFile || old.API.KeyFile != next.API.KeyFile || old.API.ClientCAFile != next.API.ClientCAFile {
		keys = append(keys, "api.cert_file")
	}
	if !maps.Equal(old.API.Clients, next.API.Clients) {
		keys = append(keys, "client")
	}
	if old.Machines.Run != next.Machines.Run {
		keys = append(keys, "machines.run")
	}
	if old.Machines.RunDir != next.Machines.RunDir {
		keys = append(keys, "machines.run_dir")
	}
	return keys
}
