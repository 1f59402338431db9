// A template is turned into a line of its statements and outputs, which is then compared with known
// ones. In that line a statement is {% ... %} without spaces outside of its literals, a variable is
// {{ ... }}, and text stands as it is, literals and plain text alike:
//
//   {{ '<|im_start|>' + message['role'] + '\n' }}      <|im_start|>{{message.role}}(newline)
//   <|im_start|>{{ message.role }}(newline)            the same
#include "launch/cli/chat_template.hpp"

#include <algorithm>
#include <array>
#include <cctype>

namespace kvmesh::launch {
namespace {

// Thrown and caught in this file alone.
struct NotUnderstood {};

class Reader {
 public:
  explicit Reader(std::string_view source) : rest_(source) {}

  std::string read() {
    while (!rest_.empty()) {
      const std::size_t tag = rest_.find('{');
      const std::string_view text = rest_.substr(0, tag);
      rest_.remove_prefix(text.size());
      if (rest_.starts_with("{%")) {
        add_text(text, true);
        statement();
      } else if (rest_.starts_with("{{")) {
        add_text(text, false);
        output();
      } else if (rest_.empty()) {
        add_text(text, false);
      } else {
        throw NotUnderstood();  // a comment, or a brace in the text
      }
    }
    return line_;
  }

 private:
  static constexpr const char* kSpace = " \t\r\n";

  // Templates of chats are read this way: a statement takes the newline behind it, and the spaces
  // before it on its line; a dash in a tag takes all space on its side.
  void add_text(std::string_view text, bool statement_follows) {
    if (trims_) text.remove_prefix(std::min(text.size(), text.find_first_not_of(kSpace)));
    if (after_statement_ && text.starts_with('\n')) text.remove_prefix(1);
    if (rest_.size() > 2 && rest_[2] == '-') {
      text = text.substr(0, text.find_last_not_of(kSpace) + 1);
    } else if (statement_follows) {
      const std::size_t end = text.find_last_not_of(" \t") + 1;
      if (end == 0 || text[end - 1] == '\n') text = text.substr(0, end);
    }
    line_ += text;
  }

  // The text between the two brackets of a tag.
  std::string_view inside(std::string_view close, bool is_statement) {
    const std::size_t end = rest_.find(close);
    if (end == std::string_view::npos) throw NotUnderstood();
    std::string_view text = rest_.substr(2, end - 2);
    rest_.remove_prefix(end + close.size());
    if (text.starts_with('-')) text.remove_prefix(1);
    trims_ = text.ends_with('-');
    if (trims_) text.remove_suffix(1);
    after_statement_ = is_statement;
    return text;
  }

  void statement() {
    std::string_view text = inside("%}", true);
    line_ += "{%";
    while (!text.empty()) {
      if (text[0] == '\'' || text[0] == '"') {
        line_ += '\'';
        line_ += literal(text);
        line_ += '\'';
      } else {
        if (!std::isspace(static_cast<unsigned char>(text[0]))) line_ += text[0];
        text.remove_prefix(1);
      }
    }
    line_ += "%}";
  }

  // Literals and variables, joined by +.
  void output() {
    std::string_view text = inside("}}", false);
    for (bool first = true;; first = false) {
      text.remove_prefix(std::min(text.size(), text.find_first_not_of(kSpace)));
      if (text.empty() && !first) return;
      if (!first) {
        if (text[0] != '+') throw NotUnderstood();
        text.remove_prefix(1);
        text.remove_prefix(std::min(text.size(), text.find_first_not_of(kSpace)));
      }
      if (text.empty()) throw NotUnderstood();
      line_ += text[0] == '\'' || text[0] == '"' ? literal(text) : variable(text);
    }
  }

  // Removes a literal from the front of `text`; returns its characters.
  static std::string literal(std::string_view& text) {
    const char quote = text[0];
    std::string value;
    for (std::size_t i = 1; i < text.size(); ++i) {
      if (text[i] == quote) {
        text.remove_prefix(i + 1);
        return value;
      }
      if (text[i] == '\\') {
        if (++i == text.size()) break;
        const std::string_view known = "n\\'\"";
        if (known.find(text[i]) == known.npos) break;
        value += text[i] == 'n' ? '\n' : text[i];
      } else {
        value += text[i];
      }
    }
    throw NotUnderstood();
  }

  static std::string variable(std::string_view& text) {
    constexpr std::array<std::array<std::string_view, 2>, 6> kVariables{
        {{"message['role']", "{{message.role}}"},
         {"message[\"role\"]", "{{message.role}}"},
         {"message.role", "{{message.role}}"},
         {"message['content']", "{{message.content}}"},
         {"message[\"content\"]", "{{message.content}}"},
         {"message.content", "{{message.content}}"}}};
    for (const auto& [written, meant] : kVariables) {
      if (!text.starts_with(written)) continue;
      text.remove_prefix(written.size());
      return std::string(meant);
    }
    throw NotUnderstood();
  }

  std::string_view rest_;
  std::string line_;
  bool trims_ = false;            // the last tag ended with a dash
  bool after_statement_ = false;  // the last tag was a statement
};

// Removes `part` from the beginning of `line`.
bool take(std::string_view& line, std::string_view part) {
  if (!line.starts_with(part)) return false;
  line.remove_prefix(part.size());
  return true;
}

// The system message for conversations that begin with none; empty: none. `condition` is the
// template's test for that.
std::string take_system(std::string_view& line, std::string_view condition) {
  std::string_view rest = line;
  if (!take(rest, condition)) return {};
  constexpr std::string_view kEnd = "<|im_end|>\n{%endif%}";
  const std::size_t end = rest.find(kEnd);
  if (!take(rest, "<|im_start|>system\n") || end == rest.npos) throw NotUnderstood();
  const std::string text(rest.substr(0, rest.find(kEnd)));
  if (text.find('{') != text.npos || text.find("<|im_") != text.npos) throw NotUnderstood();
  rest.remove_prefix(text.size() + kEnd.size());
  line = rest;
  return text;
}

}  // namespace

std::optional<ChatTemplate> read_chat_template(std::string_view source) {
  try {
    const std::string whole = Reader(source).read();
    std::string_view line = whole;
    std::string system = take_system(line, "{%ifmessages[0]['role']!='system'%}");
    if (!take(line, "{%formessageinmessages%}")) return std::nullopt;
    if (system.empty()) {
      system = take_system(line, "{%ifloop.firstandmessages[0]['role']!='system'%}");
    }
    if (!take(line, "<|im_start|>{{message.role}}\n{{message.content}}<|im_end|>\n{%endfor%}")) {
      return std::nullopt;
    }
    take(line, "{%ifadd_generation_prompt%}<|im_start|>assistant\n{%endif%}");
    if (!line.empty() && line != "\n") return std::nullopt;
    return ChatTemplate{std::move(system)};
  } catch (const NotUnderstood&) {
    return std::nullopt;
  }
}

}  // namespace kvmesh::launch
