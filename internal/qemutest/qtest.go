package qemutest

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// qtest is a client of QEMU's qtest protocol: it reads and writes ports and memory in
// the processor's stead, a line each (QEMU's system/qtest.c documents it).
type qtest struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

// qtest connects to the machine's qtest socket, which serves one client.
func (v *VM) qtest(t testing.TB) *qtest {
	t.Helper()
	var c net.Conn
	require.Eventually(t, func() (ok bool) {
		var err error
		c, err = net.Dial("unix", v.QTest)
		return err == nil // the socket exists a moment before QEMU listens on it
	}, 5*time.Second, 5*time.Millisecond, "QEMU does not listen on its qtest socket")
	t.Cleanup(func() { c.Close() })
	return &qtest{t: t, conn: c, r: bufio.NewReader(c)}
}

// say sends one line and returns what stands after the OK in the answer.
func (q *qtest) say(format string, args ...any) string {
	q.t.Helper()
	q.send(fmt.Sprintf(format+"\n", args...))
	return q.answer()
}

func (q *qtest) send(lines string) {
	q.t.Helper()
	require.NoError(q.t, q.conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err := io.WriteString(q.conn, lines)
	require.NoError(q.t, err)
}

func (q *qtest) answer() string {
	q.t.Helper()
	for {
		line, err := q.r.ReadString('\n')
		require.NoError(q.t, err, "qtest")
		if words := strings.Fields(line); len(words) > 0 && words[0] != "IRQ" {
			require.Equal(q.t, "OK", words[0], "qtest answered %q", line)
			return strings.Join(words[1:], " ")
		}
	}
}

// ask is say for a number.
func (q *qtest) ask(format string, args ...any) uint32 {
	q.t.Helper()
	return q.number(q.say(format, args...))
}

func (q *qtest) number(answer string) uint32 {
	q.t.Helper()
	n, err := strconv.ParseUint(answer, 0, 32)
	require.NoError(q.t, err, "qtest")
	return uint32(n)
}

// The width of a port or a register, in qtest's letters.
const (
	wide8  = "b"
	wide16 = "w"
	wide32 = "l"
)

func (q *qtest) in(width string, port uint32) uint32 { return q.ask("in%s %#x", width, port) }

// ins reads a port n times, 16 bits at a time. It doesn't wait for one answer before it
// asks for the next, which makes a sector's 1,024 reads take 4 ms, and not 30.
func (q *qtest) ins(port uint32, n int) (data []byte) {
	q.t.Helper()
	q.send(strings.Repeat(fmt.Sprintf("inw %#x\n", port), n))
	for range n {
		data = binary.LittleEndian.AppendUint16(data, uint16(q.number(q.answer())))
	}
	return data
}

func (q *qtest) out(width string, port, value uint32) { q.say("out%s %#x %#x", width, port, value) }

// get and put are for the registers of a device, which the width matters to.
func (q *qtest) get(width string, addr uint32) uint32 { return q.ask("read%s %#x", width, addr) }

func (q *qtest) put(width string, addr, value uint32) { q.say("write%s %#x %#x", width, addr, value) }

// put64 writes an address into a pair of registers; none of ours needs its upper half.
func (q *qtest) put64(addr, value uint32) {
	q.put(wide32, addr, value)
	q.put(wide32, addr+4, 0)
}

// read and write are for memory.
func (q *qtest) read(addr uint32, n int) []byte {
	q.t.Helper()
	if n == 0 {
		return nil // QEMU's assertion fails otherwise
	}
	b, err := hex.DecodeString(strings.TrimPrefix(q.say("read %#x %#x", addr, n), "0x"))
	require.NoError(q.t, err)
	return b
}

func (q *qtest) clear(addr uint32, n int) { q.say("memset %#x %#x 0", addr, n) }

func (q *qtest) write(addr uint32, b []byte) { q.say("write %#x %#x 0x%x", addr, len(b), b) }

// until waits for a device. Most have done their work when the register is read first:
// QEMU does it as it is told to, or in a bottom half; only the disc is read meanwhile.
func (q *qtest) until(what string, done func() bool) {
	q.t.Helper()
	for end := time.Now().Add(5 * time.Second); !done(); time.Sleep(100 * time.Microsecond) {
		require.True(q.t, time.Now().Before(end), "the guest waits in vain for %s", what)
	}
}
