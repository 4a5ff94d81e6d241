// Package systemd is what a daemon needs of systemd, each part doing nothing where
// there is no systemd:
//
//   - Listener takes over the socket of a socket unit (sd_listen_fds(3)).
//   - Notifier tells the service manager how the service is doing (sd_notify(3)), and
//     feeds its watchdog for as long as a health check comes back.
//   - NewLogHandler writes log/slog records to the journal with their attributes as
//     fields, when standard error goes there, and as text else.
//   - Units starts, kills and looks at other units, over D-Bus, and finds their last
//     words in the journal. It says so where there is no systemd.
//
// The unit files that belong to them lie beside the code.
//
// # What is go-systemd's and what is not
//
// github.com/coreos/go-systemd does what it does well: taking over descriptors
// (activation.Files), the watchdog's environment (daemon.SdWatchdogEnabled), telling
// whether standard error is the journal's (journal.StderrIsJournalStream), the protocols'
// constants, and the service manager on D-Bus (dbus.Conn): it has every method, a job's
// result is told by the signal for just that job, each call ends with its context, and
// root reaches the manager where no bus runs. Three things are written here, since a daemon that must not
// hang needs them bounded: daemon.SdNotify and journal.Send write without a deadline,
// so a manager or a journal that is stuck would hold up whoever logs;
// activation.Listeners leaves a nil in place of a socket of the wrong kind; and
// journal.Send copies a large entry to a file in /dev/shm, while a sealed memfd needs
// no file system.
package systemd
