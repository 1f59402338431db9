// The chat templates that the program understands, and the tokens of a prompt with them.
#include <gtest/gtest.h>

#include "launch/cli/chat.hpp"
#include "launch/cli/chat_template.hpp"
#include "tests/launch/tiny_gguf.hpp"

namespace kvmesh::launch {
namespace {

constexpr const char* kLoop = "{% for message in messages %}";
constexpr const char* kMessage =
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}";
constexpr const char* kEnd = "{% endfor %}";

std::string template_of(const std::string& message, const std::string& before = "") {
  return std::string(kLoop) + before + message + kEnd;
}

TEST(ChatTemplate, ReadsTheSystemMessage) {
  const std::string loop = template_of(
      kMessage,
      "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are it, "
      "trained by us.<|im_end|>\n' }}{% endif %}");
  for (const std::string& end : std::vector<std::string>{
           "", "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"}) {
    const auto chat = read_chat_template(loop + end);
    ASSERT_TRUE(chat.has_value()) << end;
    EXPECT_EQ(chat->system, "You are it, trained by us.");
  }
  const auto before = read_chat_template(
      std::string("{%- if messages[0]['role'] != 'system' -%}\n  {{- \"<|im_start|>system\\nIt's me"
                  "<|im_end|>\\n\" -}}\n{%- endif -%}\n") +
      template_of(kMessage));
  ASSERT_TRUE(before.has_value());
  EXPECT_EQ(before->system, "It's me");
}

TEST(ChatTemplate, ReadsEveryWayToWriteAMessage) {
  for (const std::string& message : std::vector<std::string>{
           kMessage,
           R"({{ "<|im_start|>" + message["role"] + "\n" + message["content"] + "<|im_end|>\n" }})",
           "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n",
           "\n    {{- '<|im_start|>' + message.role + '\\n' -}}  {{ message.content + "
           "'<|im_end|>\\n' "
           "}}"}) {
    const auto chat = read_chat_template(template_of(message));
    ASSERT_TRUE(chat.has_value()) << message;
    EXPECT_EQ(chat->system, "");
  }
}

TEST(ChatTemplate, ReturnsNothingForUnknownTemplates) {
  for (const std::string& source : std::vector<std::string>{
           "", "{{ bos_token }}", kLoop, std::string("{# a comment #}") + template_of(kMessage),
           // Pieces of the source between "<|im_start|>system" and "<|im_end|>", but no message.
           template_of(kMessage,
                       "{% if message['role'] == 'system' %}{{ '<|im_start|>system\n' + "
                       "message['content'] + '<|im_end|>\n' }}{% endif %}"),
           template_of(kMessage,
                       "{% if loop.first and messages[0]['role'] != 'system' %}{{ "
                       "'<|im_start|>system\n' }}{{ default }}{{ '<|im_end|>\n' }}"
                       "{% endif %}"),
           template_of("{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + "
                       "'<|im_end|>\n' }}"),
           template_of("{{ '[INST]' + message['content'] + '[/INST]' }}"),
           template_of(kMessage) + "{{ eos_token }}", template_of(kMessage) + "more",
           std::string(" ") + template_of(kMessage) + "{% if tools %}{{ tools }}{% endif %}",
           template_of("{{ '<|im_start|>' + message['role'] + '\n"), "{{ 'a' + }}", "{{", "{% '"}) {
    EXPECT_FALSE(read_chat_template(source).has_value()) << source;
  }
}

// A file with the tiny vocabulary and `chat_template`.
std::string file_with(const std::string& chat_template, int eos) {
  test::GgufWriter writer;
  writer.text("tokenizer.ggml.model", "gpt2");
  const test::TinyVocabulary vocabulary = test::tiny_vocabulary();
  writer.texts("tokenizer.ggml.tokens", vocabulary.tokens);
  writer.integers("tokenizer.ggml.token_type", vocabulary.types);
  writer.texts("tokenizer.ggml.merges", vocabulary.merges);
  writer.integer("tokenizer.ggml.eos_token_id", static_cast<std::uint32_t>(eos));
  if (!chat_template.empty()) writer.text("tokenizer.chat_template", chat_template);
  return writer.bytes();
}

Prompt prompt_with(const std::string& chat_template, bool chat) {
  const test::TemporaryFile path(file_with(chat_template, 0));
  const engine::GgufFile file(path.path());
  const engine::Tokenizer tokenizer(file);
  return Conversation(file, tokenizer, chat).ask("hi");
}

TEST(Chat, EndsAtTheEndOfATurn) {
  const std::vector<engine::Token> both{0, 2};  // <|endoftext|> and <|im_end|>
  EXPECT_EQ(prompt_with(template_of(kMessage), true).ends, both);
  EXPECT_EQ(prompt_with("", true).ends, both);
  EXPECT_EQ(prompt_with(template_of(kMessage), false).ends, std::vector<engine::Token>{0});
}

TEST(Chat, RejectsUnknownTemplates) {
  const std::string other = template_of("{{ '[INST]' + message['content'] + '[/INST]' }}");
  try {
    prompt_with(other, true);
    FAIL() << "took it";
  } catch (const engine::ModelError& error) {
    EXPECT_NE(std::string(error.what()).find("chat template is not supported"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("--raw"), std::string::npos);
  }
  EXPECT_EQ(prompt_with(other, false).tokens.size(), 2u);
}

// A later prompt begins with all tokens before it, so that their keys and values can be reused.
TEST(Chat, ALaterPromptBeginsWithTheEarlierTurns) {
  const test::TemporaryFile path(file_with(template_of(kMessage), 0));
  const engine::GgufFile file(path.path());
  const engine::Tokenizer tokenizer(file);
  const std::vector<engine::Token> answer = tokenizer.encode("yes");
  for (const bool chat : {true, false}) {
    Conversation conversation(file, tokenizer, chat);
    std::vector<engine::Token> want = conversation.ask("hi").tokens;
    conversation.answer(answer);
    want.insert(want.end(), answer.begin(), answer.end());
    std::string between = "why?";
    if (chat) between = "<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n";
    const auto rest = tokenizer.encode(between, engine::ControlTokens::kRecognise);
    want.insert(want.end(), rest.begin(), rest.end());
    EXPECT_EQ(conversation.ask("why?").tokens, want);
  }
}

}  // namespace
}  // namespace kvmesh::launch
