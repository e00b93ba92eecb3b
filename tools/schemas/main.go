// SPDX-License-Identifier: Apache-2.0

// Command schemas writes the published schemas of the API objects that orb8's
// manifests consist of, cut down to what validates them:
//
//	go run ./tools/schemas v1.25.16 > deploy/testdata/schemas/v1.25.json
//
// It reads the OpenAPI document in the module k8s.io/kubernetes of that version.
// Objects are closed: a field that the schema lacks is an error.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// kinds are the objects in orb8's manifests.
var kinds = []string{
	"io.k8s.api.core.v1.Namespace", "io.k8s.api.core.v1.ServiceAccount", "io.k8s.api.core.v1.ConfigMap",
	"io.k8s.api.core.v1.Service", "io.k8s.api.apps.v1.DaemonSet",
	"io.k8s.api.rbac.v1.ClusterRole", "io.k8s.api.rbac.v1.ClusterRoleBinding",
	"io.k8s.api.rbac.v1.Role", "io.k8s.api.rbac.v1.RoleBinding",
	"io.k8s.api.networking.v1.NetworkPolicy",
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run ./tools/schemas VERSION, for instance v1.25.16")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "schemas: %v\n", err)
		os.Exit(1)
	}
}

func run(version string) error {
	all, err := definitions(version)
	if err != nil {
		return err
	}
	kept := map[string]any{}
	for _, kind := range kinds {
		if err := take(all, kept, kind); err != nil {
			return err
		}
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", " ")
	return out.Encode(map[string]any{"kubernetes": version, "definitions": kept})
}

// definitions downloads the module and reads its OpenAPI document.
func definitions(version string) (map[string]any, error) {
	cmd := exec.CommandContext(context.Background(), "go", "mod", "download", "-json", "k8s.io/kubernetes@"+version)
	cmd.Dir = os.TempDir()
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("download k8s.io/kubernetes@%s: %w: %s", version, err, text)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(text, &module); err != nil {
		return nil, fmt.Errorf("read what go mod download says: %w", err)
	}
	text, err = os.ReadFile(filepath.Join(module.Dir, "api/openapi-spec/swagger.json"))
	if err != nil {
		return nil, err
	}
	var document struct {
		Definitions map[string]any `json:"definitions"`
	}
	if err := json.Unmarshal(text, &document); err != nil {
		return nil, fmt.Errorf("read the OpenAPI document of %s: %w", version, err)
	}
	return document.Definitions, nil
}

// take copies a definition and what it refers to.
func take(all, kept map[string]any, name string) error {
	if kept[name] != nil {
		return nil
	}
	definition, ok := all[name].(map[string]any)
	if !ok {
		return fmt.Errorf("no definition of %s", name)
	}
	kept[name] = definition
	return walk(definition, func(ref string) error { return take(all, kept, ref) })
}

// walk cuts a schema down and calls refer with every definition that it refers to.
func walk(schema map[string]any, refer func(string) error) error {
	delete(schema, "description")
	for key := range schema {
		if strings.HasPrefix(key, "x-kubernetes-") {
			delete(schema, key)
		}
	}
	if properties, ok := schema["properties"].(map[string]any); ok && schema["additionalProperties"] == nil {
		schema["additionalProperties"] = false
		for _, name := range slices.Sorted(keys(properties)) {
			if err := walkAny(properties[name], refer); err != nil {
				return err
			}
		}
	}
	if ref, ok := schema["$ref"].(string); ok {
		return refer(strings.TrimPrefix(ref, "#/definitions/"))
	}
	for _, key := range []string{"items", "additionalProperties"} {
		if err := walkAny(schema[key], refer); err != nil {
			return err
		}
	}
	return nil
}

func walkAny(schema any, refer func(string) error) error {
	if m, ok := schema.(map[string]any); ok {
		return walk(m, refer)
	}
	return nil
}

func keys(m map[string]any) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
