package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// Put sets key to value, written as encoding/json does, and returns when that is durable. Callers that wait at the
// same moment share one fdatasync; changes of one key apply in the order of the calls.
//
// key has 1 to MaxKey bytes of UTF-8 without control characters; value has at most MaxValue bytes as JSON and is not
// null. Put refuses with an error that is syscall.ENOSPC (or what else the file system said), before anything is
// written, when the space for outcomes could no longer be kept free. After ErrFailed it is unknown whether the change
// is on the disk.
func (j *Journal) Put(key string, value any) error {
	return j.put(key, value, false)
}

// PutReserved is Put for the outcome of an intent that Put accepted before: it may use up the space that is kept free
// for just that, so a full disk does not stop it.
func (j *Journal) PutReserved(key string, value any) error {
	return j.put(key, value, true)
}

// Delete removes key durably; removing a key that has no value is as durable and changes nothing. It may use up the
// reserve, since it makes room.
func (j *Journal) Delete(key string) error {
	if err := checkKey(key); err != nil {
		return fmt.Errorf("state: %s: %w", j.path, err)
	}
	return j.commit(request{key: key, value: json.RawMessage(null), reserved: true})
}

func (j *Journal) put(key string, value any, reserved bool) error {
	if err := checkKey(key); err != nil {
		return fmt.Errorf("state: %s: %w", j.path, err)
	}
	text, err := j.marshal(value)
	if err != nil {
		return fmt.Errorf("state: %s: the value of %q: %w", j.path, key, err)
	}
	return j.commit(request{key: key, value: text, reserved: reserved})
}

// An encoder is a JSON encoder with the buffer that it writes to.
type encoder struct {
	buf  bytes.Buffer
	json *json.Encoder
}

func newEncoder() any {
	e := new(encoder)
	e.json = json.NewEncoder(&e.buf)
	e.json.SetEscapeHTML(false) // people read the file
	return e
}

// marshal writes value as JSON into bytes of its own.
func (j *Journal) marshal(value any) (json.RawMessage, error) {
	e := j.encode.Get().(*encoder)
	defer j.encode.Put(e)
	e.buf.Reset()
	if err := e.json.Encode(value); err != nil {
		return nil, err
	}
	text := bytes.TrimSuffix(e.buf.Bytes(), []byte("\n"))
	switch {
	case len(text) > MaxValue:
		return nil, fmt.Errorf("%d bytes are more than %d", len(text), MaxValue)
	case string(text) == null:
		return nil, errors.New("null is no value; Delete removes a key")
	}
	return bytes.Clone(text), nil
}

// A request is one change that waits to become durable.
type request struct {
	key      string
	value    json.RawMessage
	reserved bool
	err      error // the outcome, set by the flusher
}

// A batch is what is written together. The caller whose request is the first is its flusher.
type batch struct {
	requests []request
	done     chan struct{} // closed when the outcomes are there; nil as long as the flusher is alone
}

// commit makes r durable, together with what else waits.
func (j *Journal) commit(r request) error {
	j.mu.Lock()
	if err := j.refusal(); err != nil {
		j.mu.Unlock()
		return err
	}
	if b := j.gathering; b != nil {
		i := len(b.requests)
		b.requests = append(b.requests, r)
		if b.done == nil {
			b.done = make(chan struct{})
		}
		j.mu.Unlock()
		<-b.done
		return b.requests[i].err
	}
	b := j.spare
	j.spare = nil
	if b == nil {
		b = new(batch)
	}
	b.requests = append(b.requests[:0], r)
	j.gathering = b
	for j.flushing {
		j.idle.Wait()
	}
	j.gathering, j.flushing = nil, true
	failed := j.err
	j.mu.Unlock()

	if failed != nil {
		b.refuse(failed)
	} else {
		j.flush(b.requests)
	}
	j.count(b.requests)
	err := b.requests[0].err
	if b.done != nil {
		close(b.done)
	}
	if j.compactDue() {
		j.compact()
	}

	j.mu.Lock()
	if b.done == nil {
		clear(b.requests)
		j.spare = b
	}
	j.flushing = false
	j.idle.Broadcast()
	j.mu.Unlock()
	return err
}

// count counts the changes that were not written.
func (j *Journal) count(requests []request) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range requests {
		if requests[i].err != nil {
			j.stats.Refused++
		}
	}
}

func (b *batch) refuse(err error) {
	for i := range b.requests {
		b.requests[i].err = err
	}
}

// compactDue says whether the file should be rewritten. The caller is the flusher.
func (j *Journal) compactDue() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err == nil && j.size > j.options.CompactSize && j.size > j.options.CompactRatio*j.live &&
		j.size >= j.compactAt
}
