// Command floor is what a command can't do without to change a disc: a process, a connection
// to the monitor, and the commands. The comparison runs it beside those that people use.
//
//	floor SOCKET insert|change|eject DRIVE DISC NODE
package main

import (
	"os"

	"github.com/trayd/trayd/integration/raw"
)

func main() {
	if len(os.Args) != 6 {
		fail("usage: floor SOCKET insert|change|eject DRIVE DISC NODE")
	}
	conn, err := raw.Dial(os.Args[1], "")
	if err != nil {
		fail(err.Error())
	}
	switch verb, drive := os.Args[2], os.Args[3]; verb {
	case "insert", "change":
		err = conn.Change(drive, os.Args[4], os.Args[5])
	case "eject":
		err = conn.Eject(drive)
	default:
		fail("no such change: " + verb)
	}
	if err != nil {
		fail(err.Error())
	}
}

func fail(why string) {
	os.Stderr.WriteString("floor: " + why + "\n")
	os.Exit(1)
}
