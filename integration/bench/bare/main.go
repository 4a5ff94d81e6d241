// Command bare is what a program in Go can't do without to change a disc through
// trayd's API: connect, one write, one read. The bench runs it beside trayctl, to tell
// what trayctl adds from what a process and the change itself cost.
//
//	bare SOCKET VM DISC
package main

import (
	"bytes"
	"net"
	"os"
	"strconv"
)

func main() {
	if len(os.Args) != 4 {
		fail("usage: bare SOCKET VM DISC")
	}
	c, err := net.Dial("unix", os.Args[1])
	if err != nil {
		fail(err.Error())
	}
	body := `{"medium":"` + os.Args[3] + `"}`
	if _, err := c.Write([]byte("POST /v1/vms/" + os.Args[2] + "/drives/-/change HTTP/1.1\r\nHost: trayd\r\nContent-Length: " +
		strconv.Itoa(len(body)) + "\r\n\r\n" + body)); err != nil {
		fail(err.Error())
	}
	answer := make([]byte, 4096)
	n, err := c.Read(answer)
	if err != nil {
		fail(err.Error())
	}
	if !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 200")) {
		fail(string(answer[:n]))
	}
}

func fail(why string) {
	os.Stderr.WriteString(why + "\n")
	os.Exit(1)
}
