package config

import "strings"

// nearest is the known key that somebody who wrote name most likely meant: the one
// with the fewest letters changed, or the same word in another table. It is empty
// when nothing is near.
func nearest(name string) string {
	best, least := "", 1+max(2, len(name)/3) // a third of the letters may be wrong
	for _, k := range keys() {
		d := distance(name, k.name)
		if lastPart(k.name) == lastPart(name) {
			d = min(d, 1) // the right word at the wrong place
		} else if e := distance(lastPart(name), lastPart(k.name)) + 1; len(lastPart(name)) >= 3 {
			d = min(d, e)
		}
		if d < least {
			best, least = k.name, d
		}
	}
	return best
}

func lastPart(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// distance is Levenshtein's: how many letters are to be put in, taken out or
// exchanged to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
