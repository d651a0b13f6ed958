// The program of soak.cu, which is compiled with the tests whose cache it uses.

int soak_on_gpu(int count, char **arguments);

int main(int count, char **arguments) { return soak_on_gpu(count, arguments); }
