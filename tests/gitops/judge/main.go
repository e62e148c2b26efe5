// What GitOps tools make of an object: kstatus, as Flux asks it, and scripts in Lua, run as Argo CD runs them.
//
// Reads lines {"object": …, "script": …} and writes a line for each: with a script what it returns, else the object's status.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"time"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type question struct {
	Object map[string]any `json:"object"`
	Script string         `json:"script"`
}

type answer struct {
	Result any    `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	encoder := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var asked question
		check(json.Unmarshal(lines.Bytes(), &asked))
		result, err := judge(asked)
		told := answer{Result: result}
		if err != nil {
			told = answer{Error: err.Error()}
		}
		check(encoder.Encode(told))
	}
	check(lines.Err())
}

func judge(asked question) (any, error) {
	if asked.Script != "" {
		return run(asked.Script, asked.Object)
	}
	// Numbers as the API machinery has them: whole ones are int64.
	text, err := json.Marshal(asked.Object)
	if err != nil {
		return nil, err
	}
	object := &unstructured.Unstructured{}
	if err := object.UnmarshalJSON(text); err != nil {
		return nil, err
	}
	found, err := status.Compute(object)
	if err != nil {
		return nil, err
	}
	return map[string]any{"status": found.Status.String(), "message": found.Message}, nil
}

// run has the libraries that Argo CD opens where nobody says useOpenLibs, but for os, and its limit of a second.
func run(script string, object map[string]any) (any, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			return nil, err
		}
	}
	limit, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(limit)
	state.SetGlobal("obj", toLua(state, object))
	if err := state.DoString(script); err != nil {
		return nil, err
	}
	return fromLua(state.Get(-1)), nil
}

func toLua(state *lua.LState, value any) lua.LValue {
	switch is := value.(type) {
	case bool:
		return lua.LBool(is)
	case float64:
		return lua.LNumber(is)
	case string:
		return lua.LString(is)
	case []any:
		table := state.CreateTable(len(is), 0)
		for _, entry := range is {
			table.Append(toLua(state, entry))
		}
		return table
	case map[string]any:
		table := state.CreateTable(0, len(is))
		for key, entry := range is {
			table.RawSetString(key, toLua(state, entry))
		}
		return table
	}
	return lua.LNil
}

// fromLua makes an empty table a list, for Lua does not tell it from an object: so does Argo CD, which then puts right what was an object.
func fromLua(value lua.LValue) any {
	table, ok := value.(*lua.LTable)
	if !ok {
		switch is := value.(type) {
		case lua.LBool:
			return bool(is)
		case lua.LNumber:
			return float64(is)
		case lua.LString:
			return string(is)
		}
		return nil
	}
	if key, _ := table.Next(lua.LNil); key == lua.LNil || key.Type() == lua.LTNumber {
		list := []any{}
		table.ForEach(func(_, entry lua.LValue) { list = append(list, fromLua(entry)) })
		return list
	}
	object := map[string]any{}
	table.ForEach(func(key, entry lua.LValue) { object[key.String()] = fromLua(entry) })
	return object
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
