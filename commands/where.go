package commands

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/pixtools/pixtools/events"
)

// Where says which results are meant, by what made them. The zero value is all of them.
//
//	where = term { "and" term } .
//	term  = ( "model" | "engine" ) ( "=" | "!=" ) value .
//
// A value is a word, or anything in single or double quotes. That of model is a SHA-256 in
// lower-case hexadecimal, or ” for results that no model made; that of engine is all of an
// engine's fingerprint, for instance 'libvips 8.18.7'.
type Where []Term

// Term is one condition.
type Term struct {
	// Field is "model" or "engine".
	Field string
	// Not is true for "!=".
	Not   bool
	Value string
}

// MaxWhereBytes bounds the text of a Where.
const MaxWhereBytes = 1000

// Match says whether a result is meant.
func (w Where) Match(op *events.OperationState) bool {
	for _, t := range w {
		made := op.GetEngine()
		if t.Field == "model" {
			made = op.GetModelSha256()
		}
		if (made == t.Value) == t.Not {
			return false
		}
	}
	return true
}

// word is a part of a Where's text.
type word struct {
	text   string
	quoted bool
	// at counts characters from 1.
	at int
}

func (w word) String() string {
	if w.at == 0 {
		return "its end"
	}
	return fmt.Sprintf("%q, at character %d", clip(w.text), w.at)
}

// ParseWhere reads a Where; the error names the word that is wrong, and what may stand there.
func ParseWhere(text string) (Where, error) {
	if len(text) > MaxWhereBytes {
		return nil, fmt.Errorf("it has %d bytes; %d are the most", len(text), MaxWhereBytes)
	}
	words, err := wordsOf(text)
	if err != nil || len(words) == 0 {
		return nil, err
	}
	take := func() (w word) {
		if len(words) > 0 {
			w, words = words[0], words[1:]
		}
		return w
	}
	var where Where
	for {
		field, relation, value := take(), take(), take()
		t := Term{Field: field.text, Not: relation.text == "!=", Value: value.text}
		switch {
		case field.quoted || field.text != "model" && field.text != "engine":
			return nil, fmt.Errorf("at %s: model or engine must stand there", field)
		case relation.quoted || relation.text != "=" && relation.text != "!=":
			return nil, fmt.Errorf("at %s: = or != must stand there", relation)
		case value.at == 0 || !value.quoted && (value.text == "=" || value.text == "!=" || value.text == "and"):
			return nil, fmt.Errorf("at %s: a value must stand there, in quotes if it has spaces", value)
		case t.Field == "model" && t.Value != "" && !isSHA256(t.Value):
			return nil, fmt.Errorf("at %s: a model is named by its SHA-256, 64 digits 0-9 and a-f, or '' for none", value)
		}
		where = append(where, t)
		switch and := take(); {
		case and.at == 0:
			return where, nil
		case and.quoted || and.text != "and":
			return nil, fmt.Errorf("at %s: and must stand there, or nothing; a value with spaces goes in quotes", and)
		}
	}
}

func isSHA256(text string) bool {
	return len(text) == 64 && strings.Trim(text, "0123456789abcdef") == ""
}

func wordsOf(text string) (words []word, err error) {
	runes := []rune(text)
	for i := 0; i < len(runes); {
		at := i + 1
		switch c := runes[i]; {
		case unicode.IsSpace(c):
			i++
		case c == '=':
			words = append(words, word{text: "=", at: at})
			i++
		case c == '!' && i+1 < len(runes) && runes[i+1] == '=':
			words = append(words, word{text: "!=", at: at})
			i += 2
		case c == '\'' || c == '"':
			end := i + 1
			for end < len(runes) && runes[end] != c {
				end++
			}
			if end == len(runes) {
				return nil, fmt.Errorf("the quote at character %d is not closed", at)
			}
			words = append(words, word{text: string(runes[i+1 : end]), quoted: true, at: at})
			i = end + 1
		default:
			end := i + 1
			for end < len(runes) && !unicode.IsSpace(runes[end]) && !strings.ContainsRune("=!'\"", runes[end]) {
				end++
			}
			words = append(words, word{text: string(runes[i:end]), at: at})
			i = end
		}
	}
	return words, nil
}
