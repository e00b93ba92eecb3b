// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kube-openapi/pkg/validation/strfmt"
	"k8s.io/kube-openapi/pkg/validation/validate"
	"sigs.k8s.io/yaml"
)

// schemas are the published ones of a version of Kubernetes, see tools/schemas.
type schemas struct {
	Kubernetes  string
	Definitions map[string]any
}

func readSchemas(t *testing.T, path string) *schemas {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := new(schemas)
	if err := json.Unmarshal(text, s); err != nil {
		t.Fatal(err)
	}
	return s
}

// whole returns a schema with the definitions that it refers to in their places.
func (s *schemas) whole(schema any) any {
	switch schema := schema.(type) {
	case map[string]any:
		if ref, ok := schema["$ref"].(string); ok {
			return s.whole(s.Definitions[strings.TrimPrefix(ref, "#/definitions/")])
		}
		out := make(map[string]any, len(schema))
		for key, value := range schema {
			out[key] = s.whole(value)
		}
		return out
	case []any:
		out := make([]any, len(schema))
		for i, value := range schema {
			out[i] = s.whole(value)
		}
		return out
	}
	return schema
}

// problems lists what the schemas have against an object.
func (s *schemas) problems(object map[string]any) []string {
	group, version, ok := strings.Cut(fmt.Sprint(object["apiVersion"]), "/")
	if !ok {
		group, version = "core", group
	}
	group, _, _ = strings.Cut(group, ".")
	name := fmt.Sprintf("io.k8s.api.%s.%s.%s", group, version, object["kind"])
	definition, ok := s.Definitions[name]
	if !ok {
		return []string{"no schema of " + name}
	}
	text, err := json.Marshal(s.whole(definition))
	if err != nil {
		return []string{err.Error()}
	}
	var schema spec.Schema
	if err := json.Unmarshal(text, &schema); err != nil {
		return []string{err.Error()}
	}
	var all []string
	for _, err := range validate.NewSchemaValidator(&schema, nil, "", strfmt.Default).Validate(object).Errors {
		all = append(all, err.Error())
	}
	slices.Sort(all)
	return all
}

// documents reads the objects of a manifest but those of the Prometheus operator.
func documents(t *testing.T, text []byte) []map[string]any {
	t.Helper()
	var all []map[string]any
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var object map[string]any
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
			t.Fatal(err)
		}
		if object != nil && !strings.HasPrefix(fmt.Sprint(object["apiVersion"]), "monitoring.coreos.com/") {
			all = append(all, object)
		}
	}
	return all
}

func schemaFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/schemas/*.json")
	if err != nil || len(files) < 2 {
		t.Fatalf("schemas %v: %v", files, err)
	}
	return files
}

// TestSchemas holds the manifests to the oldest and the newest supported version.
func TestSchemas(t *testing.T) {
	for _, file := range schemaFiles(t) {
		s := readSchemas(t, file)
		for manifest, want := range map[string]int{"orb8-daemonset.yaml": 6, "testdata/all.yaml": 9} {
			text, err := os.ReadFile(manifest)
			if err != nil {
				t.Fatal(err)
			}
			objects := documents(t, text)
			if len(objects) != want {
				t.Errorf("%s: %d objects, want %d", manifest, len(objects), want)
			}
			for _, object := range objects {
				for _, problem := range s.problems(object) {
					t.Errorf("Kubernetes %s: %s: %v: %s", s.Kubernetes, manifest, object["kind"], problem)
				}
			}
		}
	}
}

// TestSchemasRefuse: what is wrong is found, so that a manifest that passes is
// right.
func TestSchemasRefuse(t *testing.T) {
	text, err := os.ReadFile("orb8-daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"no such field":         {"hostPID:", "hostPids:"},
		"no such field, deeper": {"readOnlyRootFilesystem:", "readOnlyRootFileSystem:"},
		"wrong type":            {"hostPID: true", "hostPID: 1"},
		"missing":               {"\n  kind: ClusterRole\n", "\n"},
		"no such kind":          {"kind: DaemonSet", "kind: DeamonSet"},
	} {
		changed := strings.Replace(string(text), change[0], change[1], 1)
		if changed == string(text) {
			t.Errorf("%s: the manifest has no %q", name, change[0])
		}
		for _, file := range schemaFiles(t) {
			s, found := readSchemas(t, file), 0
			for _, object := range documents(t, []byte(changed)) {
				found += len(s.problems(object))
			}
			if found == 0 {
				t.Errorf("%s: Kubernetes %s finds nothing wrong", name, s.Kubernetes)
			}
		}
	}
}
