package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDecoderCutsByNesting(t *testing.T) {
	tests := []struct {
		name   string
		stream string
		want   []string
		err    error
	}{
		{"nothing", "", nil, io.EOF},
		{"one", `{"a":1}`, []string{`{"a":1}`}, io.EOF},
		{"lines", "{}\r\n{}\r\n", []string{`{}`, `{}`}, io.EOF},
		{"no lines", `{}{"b":{}}`, []string{`{}`, `{"b":{}}`}, io.EOF},
		{"pretty", "{\n    \"a\": [\n        1\n    ]\n}\n", []string{"{\n    \"a\": [\n        1\n    ]\n}"}, io.EOF},
		{"braces in a string", `{"a":"}{]["}{}`, []string{`{"a":"}{]["}`, `{}`}, io.EOF},
		{"escaped quote", `{"a":"\"}"}{}`, []string{`{"a":"\"}"}`, `{}`}, io.EOF},
		{"escaped backslash", `{"a":"\\"}{}`, []string{`{"a":"\\"}`, `{}`}, io.EOF},
		{"torn", `{}{"a":`, []string{`{}`}, io.ErrUnexpectedEOF},
		{"torn in a string", `{"a":"`, nil, io.ErrUnexpectedEOF},
		{"a human monitor", "QEMU 7.2.22 monitor", nil, errNotQMP},
		{"closed too often", `{}}`, []string{`{}`}, errNotQMP},
		{"not an object", `[]`, nil, errNotQMP},
		{"a bare string", `"a"`, nil, errNotQMP},
	}
	readers := map[string]func(io.Reader) io.Reader{
		"whole":         func(r io.Reader) io.Reader { return r },
		"byte by byte":  iotest.OneByteReader,
		"data with EOF": iotest.DataErrReader,
	}
	for _, tt := range tests {
		for how, reader := range readers {
			t.Run(tt.name+"/"+how, func(t *testing.T) {
				d := newDecoder(reader(strings.NewReader(tt.stream)))
				for _, want := range tt.want {
					got, err := d.next()
					require.NoError(t, err)
					require.Equal(t, want, string(got))
				}
				_, err := d.next()
				require.ErrorIs(t, err, tt.err)
			})
		}
	}
}

func TestDecoderQuotesWhatIsNotQMP(t *testing.T) {
	_, err := newDecoder(strings.NewReader("SSH-2.0-OpenSSH_9.2")).next()
	require.ErrorContains(t, err, "SSH-2.0-OpenSSH_9.2")
}

func TestDecoderGivesMemoryBack(t *testing.T) {
	large := `{"a":"` + strings.Repeat("x", 1<<20) + `"}`
	d := newDecoder(strings.NewReader(large + `{"b":1}` + large + `{"c":1}`))
	for range 2 {
		msg, err := d.next()
		require.NoError(t, err)
		require.Equal(t, large, string(msg))
		_, err = d.next()
		require.NoError(t, err)
	}
	_, err := d.next()
	require.ErrorIs(t, err, io.EOF)
	assert.Len(t, d.buf, minBuffer)
}

func TestDecoderOwn(t *testing.T) {
	for _, size := range []int{10, minBuffer, 100 << 10} {
		first := `{"a":"` + strings.Repeat("x", size) + `"}`
		second := `{"b":"` + strings.Repeat("y", size) + `"}`
		d := newDecoder(strings.NewReader(first + second))
		msg, err := d.next()
		require.NoError(t, err)
		own := d.own(msg, nil)
		msg, err = d.next()
		require.NoError(t, err)
		require.Equal(t, second, string(msg))
		require.Equal(t, first, string(own), "size %d", size)
	}
}

func TestDecoderLimit(t *testing.T) {
	largest := `{"a":"` + strings.Repeat("x", 1000-8) + `"}`
	require.Len(t, largest, 1000)
	tooLarge := `{"a":"` + strings.Repeat("x", 1000-7) + `"}`
	for _, bufferSize := range []int{10, 999, 1000, 4096} {
		d := newDecoder(iotest.HalfReader(strings.NewReader(largest + largest + tooLarge)))
		d.max = 1000
		d.buf = make([]byte, bufferSize)
		for range 2 {
			msg, err := d.next()
			require.NoError(t, err)
			require.Equal(t, largest, string(msg))
			d.buf = d.buf[:len(d.buf):len(d.buf)]
		}
		msg, err := d.next()
		if bufferSize < 4096 { // one that is complete in the buffer anyway harms nobody
			require.ErrorIs(t, err, errTooLarge)
		} else if err == nil {
			require.Equal(t, tooLarge, string(msg))
		}
	}
}

type stuckReader struct{}

func (stuckReader) Read([]byte) (int, error) { return 0, nil }

func TestDecoderDoesNotSpin(t *testing.T) {
	_, err := newDecoder(stuckReader{}).next()
	require.ErrorIs(t, err, io.ErrNoProgress)
}

// FuzzDecoder compares with encoding/json: as long as a stream consists of JSON objects both must find the same ones,
// however the stream is cut into reads; and no stream makes the decoder panic or return what is not in it.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte(`{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`+"\r\n"), 7)
	f.Add([]byte(`{"return": {}, "id": 1}`+"\r\n"+`{"event":"RESET","timestamp":{"seconds":1,"microseconds":2}}`), 1)
	f.Add([]byte("{\n    \"return\": {\n    }\n}\n"), 3)
	f.Add([]byte(`{"id": [1, 2], "error": {"class": "GenericError", "desc": "a \"}\\"}}`), 4096)
	f.Add([]byte(`{"a":"\u007d"}}{`), 2)
	f.Add([]byte(`(qemu) {}`), 100)
	f.Fuzz(func(t *testing.T, stream []byte, step int) {
		d := newDecoder(&steppedReader{data: stream, step: max(step%5000, 1)})
		d.buf = make([]byte, 8)
		oracle := json.NewDecoder(bytes.NewReader(stream))
		valid, total := true, 0
		for {
			msg, err := d.next()
			var want json.RawMessage
			if valid {
				valid = oracle.Decode(&want) == nil && want[0] == '{'
			}
			if err != nil {
				if valid {
					t.Fatalf("%v instead of %q", err, want)
				}
				return
			}
			if valid && string(msg) != string(want) {
				t.Fatalf("%q instead of %q", msg, want)
			}
			if total += len(msg); total > len(stream) || !bytes.Contains(stream, msg) {
				t.Fatalf("%q comes from nowhere", msg)
			}
			m, err := parseMessage(msg)
			if err == nil && m.kind == kindEvent {
				m.event()
			}
			checkParsed(t, msg, &m, err)
		}
	})
}

// checkParsed compares a parsed message with encoding/json's idea of it.
func checkParsed(t *testing.T, msg []byte, m *message, err error) {
	var want struct {
		Return, Error, ID json.RawMessage
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(msg, &members) != nil || bytes.Contains(msg, []byte(`\`)) || err != nil {
		return // a message that is wrong somewhere deeper is its receiver's matter
	}
	want.Return, want.Error, want.ID = members["return"], members["error"], members["id"]
	switch m.kind {
	case kindReturn, kindError:
		if string(m.body) != string(want.Return) && string(m.body) != string(want.Error) {
			t.Fatalf("body %q of %q", m.body, msg)
		}
		if string(m.id) != string(want.ID) {
			t.Fatalf("id %q of %q", m.id, msg)
		}
		if string(msg[m.at:m.at+len(m.body)]) != string(m.body) {
			t.Fatalf("body of %q is not at %d", msg, m.at)
		}
	}
}

type steppedReader struct {
	data []byte
	step int
}

func (r *steppedReader) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.data[:min(r.step, len(r.data))])
	r.data = r.data[n:]
	return n, nil
}

func TestParseMessage(t *testing.T) {
	tests := []struct {
		msg  string
		kind kind
		body string
		id   string
	}{
		{`{"return": {}, "id": 1}`, kindReturn, `{}`, `1`},
		{`{"id":18446744073709551615,"return":[{"a":"}"}]}`, kindReturn, `[{"a":"}"}]`, `18446744073709551615`},
		{`{"return":-1.5e3,"id":"x,y"}`, kindReturn, `-1.5e3`, `"x,y"`},
		{`{ "id" : [1, 2] , "error" : {"class":"G","desc":"d"} }`, kindError, `{"class":"G","desc":"d"}`, `[1, 2]`},
		{`{"error":{"class":"G","desc":"d"}}`, kindError, `{"class":"G","desc":"d"}`, ``},
		{`{"timestamp":{},"event":"E","data":{"id":3}}`, kindEvent, `{"id":3}`, ``},
		{`{"event":"E"}`, kindEvent, ``, ``},
		{`{"QMP":{"version":{}},"new":true}`, kindGreeting, `{"version":{}}`, ``},
	}
	for _, tt := range tests {
		m, err := parseMessage([]byte(tt.msg))
		require.NoError(t, err, tt.msg)
		assert.Equal(t, tt.kind, m.kind, tt.msg)
		assert.Equal(t, tt.body, string(m.body), tt.msg)
		assert.Equal(t, tt.id, string(m.id), tt.msg)
	}
	for _, msg := range []string{
		`{}`, `{"a":1}`, `{"return"}`, `{"return":}`, `{"return":{},}`, `{"return":{} "id":1}`, `{]`, `{"return":1]`, `{:}`,
		`{,}`, `{"data":{}}`,
	} {
		_, err := parseMessage([]byte(msg))
		assert.ErrorIs(t, err, errNotQMP, msg)
	}
}

func TestEventsAreChecked(t *testing.T) {
	for _, msg := range []string{
		`{"event":5}`, `{"event":"E","data":{]}`, `{"event":"E","timestamp":[]}`,
	} {
		m, err := parseMessage([]byte(msg))
		if err == nil {
			_, err = m.event()
		}
		assert.True(t, errors.Is(err, errNotQMP), msg)
	}
	m, err := parseMessage([]byte(`{"event":"E","timestamp":{"seconds":-1,"microseconds":-1}}`))
	require.NoError(t, err)
	e, err := m.event()
	require.NoError(t, err)
	assert.True(t, e.Time.IsZero())
	assert.Nil(t, e.Data)
}
