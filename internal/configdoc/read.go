package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// setting is one variable of the environment.
type setting struct {
	Variable string
	Default  string // as the environment would say it
	Derived  string // what an unset one becomes, in words
	Range    string
	Unit     string
	Secret   bool
	Example  string
	What     string // sentences
	Beyond   string
}

// section is the settings of one struct.
type section struct {
	Title    string
	File     string // below the root
	Settings []setting
}

// module is the path that imports of this repository begin with.
const module = "github.com/pixtools/pixtools/"

// beyondMark begins the line of a comment that tells what happens beyond a limit.
const beyondMark = "Beyond it: "

// reader follows the fields of the program's configuration through the packages.
type reader struct {
	root   string
	faults []error
	// seen is each variable's default, and where it was first told of.
	seen map[string]setting
}

// read gives the sections of cmd/pixtools's configuration, in its order, and every fault at
// once: a field without a comment is one.
func read(root string) ([]section, error) {
	r := &reader{root: root, seen: map[string]setting{}}
	file, fields := r.structure("cmd/pixtools", "config")
	if fields == nil {
		return nil, errors.Join(r.faults...)
	}
	own := section{Title: "The program", File: file.path}
	own.Settings = r.settings(file, "config", fields)
	sections := []section{own}
	for _, field := range fields.List {
		directory, name := file.named(field.Type)
		if len(field.Names) != 1 || directory == "" || tagOf(field).Get("env") != "" {
			continue
		}
		title := strings.TrimSuffix(words(field.Doc), ".")
		if title == "" {
			r.fault("%s: the field %s has no comment: say above it what these settings are for, in a few words, as the heading of their table", file.path, field.Names[0].Name)
		}
		in, inner := r.structure(directory, name)
		if inner == nil {
			continue
		}
		if s := (section{Title: title, File: in.path, Settings: r.settings(in, name, inner)}); len(s.Settings) > 0 {
			sections = append(sections, s)
		}
	}
	return sections, errors.Join(r.faults...)
}

func (r *reader) fault(format string, args ...any) {
	r.faults = append(r.faults, fmt.Errorf(format, args...))
}

// source is a file that is read.
type source struct {
	path    string // below the root
	imports map[string]string
}

// named is the directory and the name of a struct of this repository's, which is not behind a
// pointer: what is comes from elsewhere.
func (s source) named(t ast.Expr) (directory, name string) {
	if beside, ok := t.(*ast.Ident); ok && beside.IsExported() {
		return filepath.ToSlash(filepath.Dir(s.path)), beside.Name
	}
	selected, ok := t.(*ast.SelectorExpr)
	if !ok {
		return "", ""
	}
	in, ok := selected.X.(*ast.Ident)
	if !ok {
		return "", ""
	}
	directory, ours := strings.CutPrefix(s.imports[in.Name], module)
	if !ours {
		return "", ""
	}
	return directory, selected.Sel.Name
}

// structure finds a struct in a package.
func (r *reader) structure(directory, name string) (source, *ast.FieldList) {
	paths, _ := filepath.Glob(filepath.Join(r.root, directory, "*.go"))
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			r.fault("%w", err)
			continue
		}
		var found *ast.StructType
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if ok && spec.Name.Name == name {
				found, _ = spec.Type.(*ast.StructType)
			}
			return found == nil
		})
		if found == nil {
			continue
		}
		in := source{path: filepath.ToSlash(filepath.Join(directory, filepath.Base(path))), imports: map[string]string{}}
		for _, spec := range parsed.Imports {
			whole, _ := strconv.Unquote(spec.Path.Value)
			short := whole[strings.LastIndexByte(whole, '/')+1:]
			if spec.Name != nil {
				short = spec.Name.Name
			}
			in.imports[short] = whole
		}
		return in, found.Fields
	}
	r.fault("%s: there is no struct %s", directory, name)
	return source{}, nil
}

func tagOf(field *ast.Field) reflect.StructTag {
	if field.Tag == nil {
		return ""
	}
	text, _ := strconv.Unquote(field.Tag.Value)
	return reflect.StructTag(text)
}

// words is a comment as one line.
func words(doc *ast.CommentGroup) string { return strings.Join(strings.Fields(doc.Text()), " ") }

// settings are a struct's own, and those of structs in it that bring more of the same kind.
func (r *reader) settings(file source, name string, fields *ast.FieldList) []setting {
	variables := map[string]string{} // by field, so that comments can name either
	for _, field := range fields.List {
		if variable := tagOf(field).Get("env"); variable != "" && len(field.Names) == 1 {
			variables[field.Names[0].Name] = variable
		}
	}
	var found []setting
	for _, field := range fields.List {
		tag := tagOf(field)
		variable := tag.Get("env")
		if variable == "" {
			if directory, inner := file.named(field.Type); directory != "" && name != "config" {
				if in, of := r.structure(directory, inner); of != nil {
					found = append(found, r.settings(in, inner, of)...)
				}
			}
			continue
		}
		where := fmt.Sprintf("%s: %s.%s (%s)", file.path, name, field.Names[0].Name, variable)
		s := setting{Variable: variable, Default: tag.Get("envDefault"), Derived: tag.Get("derived"), Range: tag.Get("range"),
			Unit: tag.Get("unit"), Secret: tag.Get("secret") != "", Example: tag.Get("example")}
		s.What, s.Beyond = described(field, variables)
		if s.What == "" {
			r.fault("%s has no comment: say above the field what it is and in which unit, and after %q, on a line of its own, what happens beyond its limit", where, beyondMark)
			continue
		}
		if kind := tag.Get("secret"); !slices.Contains([]string{"", "value", "url"}, kind) {
			r.fault("%s: the tag secret is %q: use value, or url for an address with a password in it", where, kind)
		}
		if first, again := r.seen[variable]; again {
			if first.Default != s.Default {
				r.fault("%s has the default %q, and %q elsewhere", where, s.Default, first.Default)
			}
			continue
		}
		r.seen[variable] = s
		found = append(found, s)
	}
	return found
}

// described is a field's comment: sentences without the field's name at their begin and with
// variables in the place of names of fields.
func described(field *ast.Field, variables map[string]string) (what, beyond string) {
	text := field.Doc.Text()
	if text == "" {
		text = field.Comment.Text()
	}
	if at := strings.Index("\n"+text, "\n"+beyondMark); at >= 0 {
		text, beyond = text[:at], strings.Join(strings.Fields(text[at+len(beyondMark):]), " ")
	}
	what = strings.Join(strings.Fields(text), " ")
	if rest, ok := strings.CutPrefix(what, field.Names[0].Name+" "); ok {
		for _, verb := range []string{"is ", "are "} {
			rest = strings.TrimPrefix(rest, verb)
		}
		what = strings.ToUpper(rest[:1]) + rest[1:]
	}
	names := func(text string) string {
		return word.ReplaceAllStringFunc(text, func(w string) string {
			if variable, ok := variables[w]; ok {
				return variable
			}
			return w
		})
	}
	return names(what), strings.TrimSuffix(names(beyond), ".")
}

var word = regexp.MustCompile(`\b[A-Za-z][A-Za-z0-9]*\b`)

// moduleRoot is above the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, missing := os.Stat(filepath.Join(dir, "go.mod")); missing == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			err = errors.New("no go.mod above the working directory: run inside the checkout")
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}
