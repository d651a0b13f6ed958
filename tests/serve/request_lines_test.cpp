// Lines of JSON are served, each with what its parent left; what is wrong with one is said.

#include "request_lines.hpp"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>

#include "serve/serving.hpp"
#include "service.hpp"

namespace engine::serve::test::request_lines_test {
namespace {

class Lines : public Serving {
 protected:
  /// What is written of each request: its text and its last line, by id; errors of lines by their
  /// number.
  struct Result {
    std::string text;
    Json last;
  };
  std::map<std::string, Result> serve(const std::string &lines) {
    const std::unique_ptr<ModelCache> cache = make_cache("plain:k2v2:g16:w16");
    Scheduler scheduler(*engine, *cache, tokenizer, {.bytes = 1 << 24});
    Inbox inbox;
    std::ostringstream out;
    RequestLines requests(tokenizer, inbox, out);
    std::istringstream in(lines);
    std::thread reader([&] { requests.read(in); });
    serve::serve(scheduler, inbox);
    reader.join();
    refused = requests.refused();
    std::map<std::string, Result> results;
    std::istringstream written(out.str());
    for (std::string line; std::getline(written, line);) {
      const Json json = Json::parse(line);
      Result &result = results[json.contains("id") ? json["id"] : json["line"]];
      if (json.contains("text")) {
        result.text += json["text"].get<std::string>();
      } else {
        EXPECT_TRUE(result.last.is_null()) << line;
        result.last = json;
      }
    }
    return results;
  }

  std::size_t refused = 0;
};

TEST_F(Lines, AreServedInOneRun) {
  auto results = serve(R"({"prompt": "in the inn", "max_tokens": 5}

{"id": "b", "prompt": "then", "max_tokens": 7, "temperature": 0.5, "seed": 3}
)");
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results["1"].last["completion_tokens"], 5);
  EXPECT_EQ(results["b"].last["completion_tokens"], 7);
  EXPECT_EQ(results["b"].last["finish_reason"], "length");
  EXPECT_FALSE(results["b"].text.empty());
  EXPECT_EQ(refused, 0u);
}

TEST_F(Lines, GoOnBehindTheirParents) {
  const std::string text = "the inn in the inn 0123456789 0123456789 0123456789 0123456789";
  auto results = serve(R"({"id": "a", "prompt": ")" + text + R"(", "max_tokens": 20}
{"id": "b", "parent": "a", "prompt": " and then", "max_tokens": 3}
{"id": "c", "parent": "b", "prompt": "", "max_tokens": 3}
)");
  ASSERT_EQ(results.size(), 3u);
  const auto of_a = encode(text).size() + 20, of_b = of_a + encode(" and then").size();
  EXPECT_EQ(results["b"].last["prompt_tokens"], of_b);
  EXPECT_EQ(results["b"].last["shared_tokens"], of_a - 1);
  EXPECT_EQ(results["c"].last["prompt_tokens"], of_b + 3);
}

TEST_F(Lines, ThatAreWrongAreNamed) {
  auto results = serve(R"(no JSON
[1]
{"id": "a"}
{"prompt": 5}
{"prompt": "x", "max_tokens": -1}
{"prompt": "x", "temperature": "hot"}
{"prompt": "x", "stop": [1]}
{"prompt": "x", "seed": 0.5}
{"prompt": "x", "parent": "nobody"}
{"id": "long", "prompt": "x", "max_tokens": 5000}
{"id": "child", "prompt": "x", "parent": "long"}
{"id": "good", "prompt": "x", "max_tokens": 2}
{"id": "good", "prompt": "x", "max_tokens": 2}
)");
  EXPECT_EQ(results["good"].last["completion_tokens"], 2);
  EXPECT_EQ(refused, 12u);
  EXPECT_EQ(results["5"].last["error"], "max_tokens is -1, must be a whole number from 0 to 1048576");
  EXPECT_EQ(results["long"].last["error"],
            "prompt and max_tokens are 1 + 5000, the model's context is 512");
  EXPECT_EQ(results["child"].last["error"], "its parent has failed");
}

}  // namespace
}  // namespace engine::serve::test::request_lines_test
