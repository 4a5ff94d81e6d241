package fetch

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// clockSkew is how much later than Last-Modified an answer's Date has to be for it to be a
// strong validator (RFC 9110, 8.8.2.2, leaves the number open; RFC 7232 had this one).
const clockSkew = time.Minute

// validator is what tells this very content from any other, byte for byte: a strong ETag,
// or a Last-Modified that is as good. Empty when there is none: then nothing that broke off
// can be gone on with.
func validator(h http.Header) string {
	if tag := h.Get("ETag"); tag != "" {
		if len(tag) >= 2 && tag[0] == '"' && tag[len(tag)-1] == '"' && len(tag) < 1<<10 {
			return tag
		}
		return "" // weak, or damaged; the date wouldn't be stronger
	}
	modified, err := http.ParseTime(h.Get("Last-Modified"))
	if err != nil {
		return ""
	}
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil || date.Sub(modified) < clockSkew {
		return ""
	}
	return h.Get("Last-Modified")
}

// contentRange reads the header of a 206: `bytes first-last/size`. A size of * is none.
func contentRange(text string) (first, last, size int64, ok bool) {
	rest, isBytes := strings.CutPrefix(text, "bytes ")
	span, whole, hasSize := strings.Cut(rest, "/")
	from, to, hasSpan := strings.Cut(span, "-")
	if !isBytes || !hasSize || !hasSpan {
		return 0, 0, 0, false
	}
	var values [3]uint64
	for i, s := range []string{from, to, whole} {
		v, err := strconv.ParseUint(s, 10, 63)
		if err != nil {
			return 0, 0, 0, false
		}
		values[i] = v
	}
	first, last, size = int64(values[0]), int64(values[1]), int64(values[2])
	return first, last, size, first <= last && last < size
}
