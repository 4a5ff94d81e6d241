package launch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// logLimit is what a log may have before a start sets it aside, in bytes.
const logLimit = 1 << 20

// Last words are what people are told of a process that failed: its last lines.
const (
	wordsLimit = 2 << 10 // bytes
	wordsLines = 5
)

// openLog opens a machine's log for its next process, and says where that one's words
// begin. One generation is kept besides, as NAME.1.
func openLog(path string) (*os.File, int64, error) {
	if st, err := os.Stat(path); err == nil && st.Size() > logLimit {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, 0, fmt.Errorf("the log can't be set aside: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("the log: %w", err)
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("the log: %w", err), f.Close())
	}
	return f, end, nil
}

// lastWords are the last lines of a log from a place on.
func lastWords(path string, from int64) string {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	from = max(from, st.Size()-wordsLimit)
	b, err := io.ReadAll(io.NewSectionReader(f, from, st.Size()-from))
	if err != nil {
		return err.Error()
	}
	return last(strings.Split(strings.TrimSpace(string(b)), "\n"))
}

// last are the last of some lines.
func last(lines []string) string {
	return strings.Join(lines[max(0, len(lines)-wordsLines):], "\n")
}
