package events

import (
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// While a new version comes in, the log has facts that the old one cannot read whole: events of
// a type that it does not know, and fields, or values of enumerations, that it does not know in
// events that it does. It takes in what it knows. What it did not know it can name, and a
// version that reads the names later can say whether it knows better.
//
// A name is that of the type, or the message's with the number of the field behind a #, or the
// enumeration's with the number of the value behind a =.

// mostUnknown bounds the names that one event gives.
const mostUnknown = 16

// Unknown names what of a record's event this version does not know: nothing where it knows all,
// or where no version will, as the type is not named as ours are. e is what Decode made of the
// record, and err what it said: nil or ErrUnknownType.
func Unknown(r *kgo.Record, e Event, err error) []string {
	if err != nil {
		name := protoreflect.FullName(TypeOf(r))
		if len(name) > longestType || !ofOurs(name) || !name.IsValid() {
			return nil
		}
		return []string{string(name)}
	}
	var names []string
	unknownIn(e.Message.ProtoReflect(), &names)
	return names
}

// ofOurs says whether a message is one of this schema: in others, such as parameters' Struct,
// nothing is added that we would have to know.
func ofOurs(name protoreflect.FullName) bool { return strings.HasPrefix(string(name), typePrefix) }

// looked are, by message, the fields in which something may be unknown: messages of ours and
// enumerations. Every event of the log is looked at, and most have few of them.
var looked = map[protoreflect.FullName][]protoreflect.FieldDescriptor{}

func init() {
	for _, m := range Catalogue() {
		lookInto(m.ProtoReflect().Descriptor())
	}
}

func lookInto(d protoreflect.MessageDescriptor) {
	if _, known := looked[d.FullName()]; known {
		return
	}
	looked[d.FullName()] = nil
	for i := range d.Fields().Len() {
		switch field := d.Fields().Get(i); {
		case field.IsMap(): // the schema has none
		case field.Enum() != nil, field.Message() != nil && ofOurs(field.Message().FullName()):
			looked[d.FullName()] = append(looked[d.FullName()], field)
			if field.Message() != nil {
				lookInto(field.Message())
			}
		}
	}
}

func unknownIn(m protoreflect.Message, names *[]string) {
	note := func(name protoreflect.FullName, between string, number int32) {
		text := string(name) + between + strconv.Itoa(int(number))
		if len(*names) < mostUnknown && !slices.Contains(*names, text) {
			*names = append(*names, text)
		}
	}
	for _, number := range numbersIn(m.GetUnknown()) {
		note(m.Descriptor().FullName(), "#", int32(number))
	}
	for _, field := range looked[m.Descriptor().FullName()] {
		if !m.Has(field) {
			continue
		}
		switch v := m.Get(field); {
		case field.IsList() && field.Message() != nil:
			for i := range v.List().Len() {
				unknownIn(v.List().Get(i).Message(), names)
			}
		case field.Message() != nil:
			unknownIn(v.Message(), names)
		case !field.IsList() && field.Enum().Values().ByNumber(v.Enum()) == nil:
			note(field.Enum().FullName(), "=", int32(v.Enum()))
		}
	}
}

// numbersIn are the numbers of the fields in a message's unknown bytes.
func numbersIn(raw protoreflect.RawFields) (numbers []protoreflect.FieldNumber) {
	for len(raw) > 0 {
		number, _, n := protowire.ConsumeField(raw)
		if n <= 0 {
			return numbers
		}
		numbers, raw = append(numbers, number), raw[n:]
	}
	return numbers
}

// Knows says whether this version knows what Unknown named in another one.
func Knows(name string) bool {
	name, value, isValue := strings.Cut(name, "=")
	name, field, isField := strings.Cut(name, "#")
	if !strings.HasPrefix(name, typePrefix) {
		return false
	}
	number, err := strconv.ParseInt(value+field, 10, 32)
	if isValue || isField {
		found, missing := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil || missing != nil {
			return false
		}
		switch d := found.(type) {
		case protoreflect.MessageDescriptor:
			return isField && d.Fields().ByNumber(protoreflect.FieldNumber(number)) != nil
		case protoreflect.EnumDescriptor:
			return isValue && d.Values().ByNumber(protoreflect.EnumNumber(number)) != nil
		}
		return false
	}
	known, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name))
	return err == nil && isEvent(known.New().Interface())
}

// Without is the event as a version read it that did not know the fields of these names.
func (e Event) Without(names []string) Event {
	e.Message = proto.Clone(e.Message)
	clearIn(e.Message.ProtoReflect(), names)
	return e
}

func clearIn(m protoreflect.Message, names []string) {
	name := m.Descriptor().FullName()
	if !ofOurs(name) {
		return
	}
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case slices.Contains(names, string(name)+"#"+strconv.Itoa(int(field.Number()))):
			m.Clear(field)
		case field.IsMap() || field.Message() == nil:
		case field.IsList():
			for i := range v.List().Len() {
				clearIn(v.List().Get(i).Message(), names)
			}
		default:
			clearIn(v.Message(), names)
		}
		return true
	})
}
