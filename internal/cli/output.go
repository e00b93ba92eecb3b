// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"io"
	"os"
	"strconv"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/Ignoramuss/orb8/internal/cli/render"
)

// outputFlags choose the format.
type outputFlags struct {
	format string
	quiet  bool
}

func (f *outputFlags) bind(fs *pflag.FlagSet) {
	fs.StringVarP(&f.format, "output", "o", string(render.Table),
		"output `FORMAT`: table (fits the terminal), wide (every column), compact (one line of words each, for grep) or json (one object per line)")
}

func (f *outputFlags) bindQuiet(fs *pflag.FlagSet) {
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "no header and no summary")
}

// headless reports whether the header is left out.
func (f *outputFlags) headless(o render.Options) bool {
	return f.quiet || o.Format == render.JSON
}

// summed reports whether a summary is written. With json it would be noise to
// whatever program reads both streams.
func (f *outputFlags) summed(o render.Options, stderr io.Writer) bool {
	return !f.quiet && (o.Format != render.JSON || isTerminal(stderr))
}

// options are those for w, which is or is not a terminal.
func (f *outputFlags) options(c *Config, w io.Writer) (render.Options, error) {
	format, err := render.ParseFormat(f.format)
	if err != nil {
		return render.Options{}, usagef("-o: %w", err)
	}
	o := terminalOptions(w, c.Getenv)
	o.Format = format
	return o, nil
}

// terminalOptions finds out what w can show. Output that goes elsewhere is
// neither coloured nor shortened; COLUMNS asks for a width all the same.
func terminalOptions(w io.Writer, getenv func(string) string) render.Options {
	var o render.Options
	if fd, ok := terminal(w); ok {
		if width, height, err := term.GetSize(fd); err == nil {
			o.Width, o.Height = width, height
		}
		if o.Width <= 0 {
			o.Width = defaultWidth
		}
		o.Color = getenv("NO_COLOR") == "" && getenv("TERM") != "dumb" && getenv("TERM") != ""
	}
	if n, err := strconv.Atoi(getenv("COLUMNS")); err == nil && n > 0 {
		o.Width = n
	}
	return o
}

// defaultWidth is for terminals that do not tell theirs.
const defaultWidth = 120

func terminal(w io.Writer) (fd int, ok bool) {
	if p, ok := w.(*printable); ok {
		w = p.Unwrap()
	}
	f, ok := w.(*os.File)
	if !ok {
		return 0, false
	}
	fd = int(f.Fd())
	return fd, term.IsTerminal(fd)
}

func isTerminal(w io.Writer) bool {
	_, ok := terminal(w)
	return ok
}
