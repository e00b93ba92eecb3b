// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/Ignoramuss/orb8/internal/cli/render"
)

// cleanText makes all text in a message of somebody else fit for one line on a terminal.
// It may be anybody who answers at an agent's address.
func cleanText(m protoreflect.Message) {
	text := func(v protoreflect.Value) protoreflect.Value {
		return protoreflect.ValueOfString(render.Clean(v.String()))
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			// The agent's messages about itself have none.
		case f.IsList() && f.Kind() == protoreflect.StringKind:
			for i := range v.List().Len() {
				v.List().Set(i, text(v.List().Get(i)))
			}
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				cleanText(v.List().Get(i).Message())
			}
		case f.IsList():
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, text(v))
		case f.Message() != nil:
			cleanText(v.Message())
		}
		return true
	})
}
