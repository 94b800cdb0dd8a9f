// SPDX-License-Identifier: Apache-2.0
// Copyright The LeapIO Authors

package guest

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// aptSource is one entry of apt's source lists: the fields needed to find Debian's archive again (sources.list(5)).
type aptSource struct {
	types      []string
	uris       []string
	suites     []string
	components []string
	// signedBy is the value of Signed-By: key ring paths, fingerprints, or a whole embedded key (then with its line breaks).
	signedBy string
}

// parseOneLineSources reads the traditional format: "deb [option=value ...] uri suite component...".
func parseOneLineSources(text string) ([]aptSource, error) {
	var sources []aptSource
	for n, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		kind, rest := cutSpace(line)
		var s aptSource
		s.types = []string{kind}
		if strings.HasPrefix(rest, "[") {
			options, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				return nil, fmt.Errorf("line %d: options without a closing bracket", n+1)
			}
			rest = after
			for _, option := range strings.Fields(options) {
				if value, ok := strings.CutPrefix(option, "signed-by="); ok {
					s.signedBy = strings.ReplaceAll(value, ",", " ")
				}
			}
		}
		fields := strings.Fields(rest)
		if len(fields) < 2 {
			return nil, fmt.Errorf("line %d: want a type, an address and a suite", n+1)
		}
		s.uris, s.suites, s.components = fields[:1], fields[1:2], fields[2:]
		sources = append(sources, s)
	}
	return sources, nil
}

// parseDeb822Sources reads the format of *.sources files: stanzas of "Field: value" with continuation lines that start with a space.
func parseDeb822Sources(text string) ([]aptSource, error) {
	var sources []aptSource
	fields := map[string]string{}
	flush := func() {
		enabled := strings.ToLower(fields["enabled"])
		if len(fields) > 0 && !slices.Contains([]string{"no", "false", "off", "0", "without", "disable"}, enabled) {
			sources = append(sources, aptSource{
				types:      strings.Fields(fields["types"]),
				uris:       strings.Fields(fields["uris"]),
				suites:     strings.Fields(fields["suites"]),
				components: strings.Fields(fields["components"]),
				signedBy:   fields["signed-by"],
			})
		}
		fields = map[string]string{}
	}
	var field string
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
			field = ""
		case line[0] == ' ' || line[0] == '\t':
			if field == "" {
				return nil, fmt.Errorf("line %d: continues no field", n)
			}
			fields[field] += "\n" + line
		default:
			name, value, ok := strings.Cut(line, ":")
			if !ok {
				return nil, fmt.Errorf("line %d: want \"Field: value\"", n)
			}
			field = strings.ToLower(strings.TrimSpace(name))
			fields[field] = strings.TrimSpace(value)
		}
	}
	flush()
	return sources, lines.Err()
}

// cutSpace splits s at its first run of blanks.
func cutSpace(s string) (first, rest string) {
	i := strings.IndexAny(s, " \t")
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimSpace(s[i:])
}

// readSources reads the machine's source lists: the file list, if it exists, and every *.list and *.sources file of the directory parts.
func readSources(list, parts string) ([]aptSource, error) {
	paths := []string{list}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(parts, pattern))
		if err != nil {
			return nil, fmt.Errorf("listing apt sources: %w", err)
		}
		paths = append(paths, more...)
	}
	var all []aptSource
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading apt sources: %w", err)
		}
		parse := parseOneLineSources
		if strings.HasSuffix(path, ".sources") {
			parse = parseDeb822Sources
		}
		sources, err := parse(string(text))
		if err != nil {
			return nil, fmt.Errorf("reading apt sources: %s: %w", path, err)
		}
		all = append(all, sources...)
	}
	return all, nil
}

// baseSuite matches suites of the archive proper, such as "stable" or a code name; not "x-security", "x-updates" or "x/".
var baseSuite = regexp.MustCompile(`^[a-z]+$`)

// debianSource picks the entry for Debian's main archive. Third parties use Debian's suite names too, so entries are ranked by what only
// the archive itself has: an address that ends in "/debian" and the archive's own key ring.
func debianSource(sources []aptSource) (aptSource, error) {
	rank := func(s aptSource) int {
		score := 0
		uri := strings.TrimSuffix(s.uris[0], "/")
		if strings.HasSuffix(uri, "/debian") {
			score += 2
		} else if strings.Contains(uri, "debian") {
			score++
		}
		if strings.Contains(s.signedBy, "debian-archive") {
			score += 2
		}
		return score
	}
	var candidates []aptSource
	for _, s := range sources {
		if slices.Contains(s.types, "deb") && slices.Contains(s.components, "main") && len(s.uris) > 0 &&
			slices.ContainsFunc(s.suites, baseSuite.MatchString) {
			candidates = append(candidates, s)
		}
	}
	slices.SortStableFunc(candidates, func(a, b aptSource) int { return cmp.Compare(rank(b), rank(a)) })
	if len(candidates) == 0 || rank(candidates[0]) == 0 {
		return aptSource{}, errors.New("apt's source lists name no Debian archive (component main); " +
			"set LEAP_DEBIAN_URI to the address of a mirror and install the package debian-archive-keyring")
	}
	return candidates[0], nil
}

// stanza formats the source for a *.sources file of its own, for other suites and with another key ring than the machine's entry.
func (s aptSource) stanza(suites []string, signedBy string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n", strings.Join(s.uris, " "), strings.Join(suites, " "))
	if signedBy != "" {
		fmt.Fprintf(&b, "Signed-By: %s\n", signedBy)
	}
	return b.String()
}
