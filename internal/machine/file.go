package machine

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// header begins every definition's file.
const header = `# A machine of trayd's. Edit it with "trayctl vm set %[1]s" or by hand while the machine is
# stopped; trayd reads it at each start. "trayctl vm show %[1]s" says what is wrong in it.

`

// encode is the file of a definition.
func encode(d *Definition) ([]byte, error) {
	b, err := toml.Marshal(d)
	if err != nil {
		return nil, err
	}
	return append(fmt.Appendf(nil, header, d.Name), b...), nil
}

// decode reads the file of a definition. It has to be right as a whole.
func decode(name string, text []byte) (*Definition, error) {
	var d Definition
	dec := toml.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err := dec.Decode(&d)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		line, _ := unknown.Errors[0].Position()
		return nil, invalidFile(name, fmt.Sprintf("line %d: no such key %s", line, strings.Join(unknown.Errors[0].Key(), ".")))
	case errors.As(err, &wrong):
		line, _ := wrong.Position()
		return nil, invalidFile(name, fmt.Sprintf("line %d: %s", line, strings.TrimPrefix(wrong.Error(), "toml: ")))
	case err != nil:
		return nil, invalidFile(name, err.Error())
	case d.Name != name:
		return nil, invalidFile(name, fmt.Sprintf("name is %q; a machine can't be renamed", d.Name))
	}
	return &d, Check(&d)
}

func invalidFile(name, detail string) error {
	return &InvalidError{name, []Problem{{definitionFile, detail, "mend the file by hand"}}}
}
